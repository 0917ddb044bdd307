"""The files that start a cluster are right by the schemas of those who read them, and agree with this repository."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from raydrd.cli import parser
from raydrd.session import read_config

ROOT = Path(__file__).resolve().parents[1]
PINNED = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(read("jobs/cluster.yaml"))


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return dict(read("jobs/rayjob.yaml"))


def ray_schema() -> Any:
    return json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_the_launcher_takes_the_cluster(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # what `ray up` does first

    jsonschema.validate(cluster, ray_schema())
    validate_config(prepare_config(copy.deepcopy(cluster)))
    wrong = copy.deepcopy(cluster)
    wrong["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, ray_schema())


def test_the_cluster_has_a_head_without_work_and_fixed_groups_with_and_without_gpus(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0} and "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    assert {bool(one["resources"].get("GPU")) for one in types.values()} == {True, False}
    assert all(one["min_workers"] == one["max_workers"] > 0 for one in types.values())
    assert sum(one["max_workers"] for one in types.values()) == cluster["max_workers"]
    images = [cluster["docker"]["image"], cluster["docker"]["worker_image"], types["cpu"]["docker"]["worker_image"]]
    assert all(f"rayproject/ray:{PINNED['ray']}-py3" in image for image in images)
    assert "gpu" not in types["cpu"]["docker"]["worker_image"]
    assert {".git", ".venv", ".raydrd", "runs"} <= set(cluster["rsync_exclude"])


def test_kuberay_takes_the_job(rayjob: dict[str, Any]) -> None:
    schema = read("tests/data/rayjob.schema.yaml")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(rayjob, schema)
    for path, value in (
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),  # Ray's parameters are strings
        (("spec", "submitterPodTemplate", "spec", "containers", 0, "resources", "limits", "memory"), "2 GB"),
    ):
        wrong = copy.deepcopy(rayjob)
        here: Any = wrong
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_job_runs_what_there_is_on_fixed_groups_with_and_without_gpus(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    python, job, *arguments = spec["entrypoint"].split()
    home = "/home/ray/raydrd/"
    assert python == "python" and (ROOT / job.removeprefix(home)).is_file()
    told = parser().parse_args(["run", *arguments])
    assert told.store.startswith("s3://") and told.out.startswith("s3://")
    cfg = read_config(str(ROOT / told.config.removeprefix(home)), told.overrides)

    clustered = spec["rayClusterSpec"]
    assert clustered["rayVersion"] == PINNED["ray"]
    assert clustered["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {one["groupName"]: one for one in clustered["workerGroupSpecs"]}
    assert all(one["replicas"] == one["minReplicas"] == one["maxReplicas"] > 0 for one in groups.values())
    limits = {n: one["template"]["spec"]["containers"][0]["resources"]["limits"] for n, one in groups.items()}
    assert limits["gpu"]["nvidia.com/gpu"] * groups["gpu"]["replicas"] == cfg.resources.train_workers
    assert "nvidia.com/gpu" not in limits["cpu"]
    pods = [spec["submitterPodTemplate"], clustered["headGroupSpec"]["template"], *(one["template"] for one in groups.values())]
    assert len({pod["spec"]["containers"][0]["image"] for pod in pods}) == 1  # one Ray, one Python, everywhere


def test_the_runtime_environment_is_one_that_ray_takes(tmp_path: Path) -> None:
    from ray.runtime_env import RuntimeEnv

    values = read("jobs/runtime_env.yaml")
    found = RuntimeEnv(**values)
    copied = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert found.pip_config()["packages"] == [f"-c {copied}/constraints.txt", f"{copied}[demo]"]
    with pytest.raises(ValueError, match="unknown"):
        RuntimeEnv(pip={"packages": [], "unknown": 1})
