"""A whole run in an object store: the same artefacts as at home, over a store that stutters, and one line when it is gone."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raydrd.config import Resources
from raydrd.session import run
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store
from raydrd.stages.shards import parts_of
from tests.conftest import write_config
from tests.s3server import Server, serving

pytestmark = pytest.mark.timeout(400)
TABLES = ("score", "score_pairs", "assemble", "search", "evaluate")  # what a run's numbers rest on, row by row


@pytest.fixture(scope="module")
def server(toy: Path) -> Iterator[Server]:
    with serving() as found:
        root = Folder.of("s3://bucket?allow_bucket_creation=true")
        root.check()
        (root / "data").upload(toy / "data")
        yield found


@pytest.fixture(scope="module")
def short(toy: Path, toy_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy run with one short step: the storage is the point."""
    values = copy.deepcopy(toy_config)
    values["curriculum"] = values["curriculum"][:1]
    values["curriculum"][0]["train"]["max_steps"] = 4
    return write_config(tmp_path_factory.mktemp("short") / "toy.yaml", values)


@pytest.fixture(scope="module")
def home(short: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run in local folders, and its report."""
    folder = tmp_path_factory.mktemp("home")
    return folder, run(short, [], out=str(folder / "run"), store=str(folder / "store"))


@pytest.fixture(scope="module")
def away(short: str, home: Any, server: Server) -> tuple[Folder, dict[str, Any], dict[str, Any]]:
    """The same in a store that refuses or breaks off every thirteenth request; its report, and what was broken."""
    folder = Folder.of("s3://bucket/away")
    server.faults("503", every=13)
    report = run(short, ["data.path=s3://bucket/data"], out=f"{folder}/run", store=f"{folder}/store")
    broken = server.faults()
    server.faults("none")
    return folder, report, broken


def _artifacts(report: dict[str, Any], root: Folder) -> Iterator[Artifact]:
    store = Store(root, Cluster(Resources(ray="off")))
    for one in report["stages"]:
        yield store.find(one["name"], one["id"])


def test_the_same_ids_scores_lists_and_metrics_as_at_home(home: Any, away: Any) -> None:
    (folder, report), (remote, other, broken) = home, away
    assert broken["broken"] >= 20  # it was not a calm day
    names = [(one["name"], one["id"]) for one in report["stages"]]
    assert [(one["name"], one["id"]) for one in other["stages"]] == names
    compared = set()
    for here, there in zip(_artifacts(report, Folder.of(folder / "store")), _artifacts(other, remote / "store"), strict=True):
        if here.stage in TABLES:
            compared.add(here.stage)
            ours, theirs = (pa.concat_tables(table for _, table in parts_of(one).each()) for one in (here, there))
            assert ours.equals(theirs), here.stage
    assert {"assemble", "search", "evaluate"} < compared
    for name in ("per_query.parquet", "run.trec", "model/model.safetensors", "index/ids.parquet"):
        assert (folder / "run" / name).read_bytes() == (remote / "run").read_bytes(name), name
    for name, numbers in report["systems"].items():
        assert {k: v for k, v in numbers.items() if k != "passages_per_s"} == {
            k: v for k, v in other["systems"][name].items() if k != "passages_per_s"
        }


def test_a_second_run_finds_everything(short: str, away: Any) -> None:
    folder, first, _ = away
    again = run(short, ["data.path=s3://bucket/data"], out=f"{folder}/again", store=f"{folder}/store")
    assert all(one["reused"] for one in again["stages"]) and len(again["stages"]) == len(first["stages"])


def test_an_outage_ends_in_one_line_and_the_same_command_goes_on(short: str, toy: Path, tmp_path: Path) -> None:
    with serving() as server:
        Folder.of("s3://bucket?allow_bucket_creation=true").check()
        command = [
            sys.executable,
            "-m",
            "raydrd.cli",
            "run",
            short,
            "--store",
            "s3://bucket/store",
            "--out",
            str(tmp_path / "run"),
        ]
        with (tmp_path / "err").open("w") as errors:
            process = subprocess.Popen(
                command, stderr=errors, stdout=subprocess.DEVNULL, env={**os.environ, **server.env, "RAYDRD_PATIENCE": "1"}
            )
            end = time.monotonic() + 200
            while not (Folder.of("s3://bucket/store/tokenize")).folders():
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "err").read_text()
                time.sleep(0.05)
            server.process.kill()
            assert process.wait(timeout=200) == 1
    text = (tmp_path / "err").read_text()
    assert "Traceback" not in text
    (line,) = [one for one in text.splitlines() if one.startswith("raydrd: ")]
    assert "s3://bucket/store/" in line and "cannot be" in line and "no answer (Could not connect to server" in line
    assert "the same command goes on" in line
