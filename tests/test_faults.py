"""kill -9 in the middle: the same command goes on, makes only what was missing, and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from raydrd.config import Resources
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from tests.faults import long_config
from tests.training_jobs import make_job

PATIENCE = 110.0
pytestmark = pytest.mark.timeout(600)  # a whole module's fixture of several real processes


@pytest.fixture(scope="module")
def config(toy: Path, toy_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return long_config(tmp_path_factory.mktemp("faults"), toy, toy_config)


def _start(config: str, store: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raydrd.cli", "run", config, *more, "--out", f"{store}-run", "--store", str(store)]
    store.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{store}.log", "ab") as log:
        # One core each: the same arithmetic in every run, and no threads that wait for one another.
        core = random.Random(str(store)).choice(sorted(os.sched_getaffinity(0)))
        pin = ["taskset", "--cpu-list", str(core)] if shutil.which("taskset") else []
        return subprocess.Popen([*pin, *command], stdout=log, stderr=log, start_new_session=True)


def _finish(process: subprocess.Popen[bytes], store: Path) -> None:
    assert process.wait(timeout=300) == 0, Path(f"{store}.log").read_text()[-3000:]


def _unfinished(store: Path, stage: str, pattern: str, least: int) -> list[Path]:
    """Files of a stage that is under way, once there are `least` of them."""
    for home in store.glob(f"{stage}/*"):
        found = sorted(home.glob(pattern))
        if len(found) >= least and not (home / "manifest.json").exists():
            return found
    return []


def _kill_when(process: subprocess.Popen[bytes], store: Path, found: Callable[[], list[Path]]) -> dict[Path, tuple[int, int]]:
    """SIGKILL the driver and all it started as soon as there is something; the finished files as they were then."""
    end = time.monotonic() + PATIENCE
    try:
        while not found():
            assert process.poll() is None, f"it ended first:\n{Path(f'{store}.log').read_text()[-3000:]}"
            assert time.monotonic() < end, f"too slow:\n{Path(f'{store}.log').read_text()[-3000:]}"
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    files = [*store.glob("*/*/manifest.json"), *store.glob("*/*/shards/part-*")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


CUTS: dict[str, tuple[str, str, int]] = {
    "embed": ("embed", "shards/part-*", 5),
    "score": ("score_pairs", "shards/part-*", 1),
    "train": ("train", "shards/scratch/checkpoint-*", 1),
}


@pytest.fixture(scope="module")
def calm_process(config: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """An undisturbed run, begun beside the disturbed ones."""
    store = tmp_path_factory.mktemp("calm") / "store"
    process = _start(config, store)
    yield process, store
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def calm(calm_process: tuple[Any, Path]) -> Path:
    """The store of an undisturbed run."""
    _finish(*calm_process)
    return calm_process[1]


@pytest.fixture(scope="module")
def killed(
    calm_process: Any, config: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[Path, tuple[int, int]]]]:
    """One store, its driver killed while embedding, while scoring and while training; then left to finish."""
    store = tmp_path_factory.mktemp("killed") / "store"
    seen = {}
    for name, (stage, pattern, least) in CUTS.items():
        seen[name] = _kill_when(_start(config, store), store, lambda s=stage, p=pattern, n=least: _unfinished(store, s, p, n))
        assert not Path(f"{store}-run/report.json").exists()
    checkpoints = list(store.glob("train/*/shards/scratch/checkpoint-*"))
    assert len(checkpoints) <= 2 and not list(store.glob("train/*/manifest.json"))
    _finish(_start(config, store), store)
    return store, seen


@pytest.mark.parametrize("when", CUTS)
def test_what_was_finished_is_never_made_again(killed: Any, when: str) -> None:
    store, seen = killed
    stage, pattern, least = CUTS[when]
    finished = seen[when]
    if when != "train":
        assert sum(path.parts[len(store.parts)] == stage and "part-" in path.name for path in finished) >= least
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished} == finished


def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(killed: Any, calm: Path) -> None:
    store, _ = killed
    assert {p.relative_to(store).parent for p in store.glob("*/*/manifest.json")} == {
        p.relative_to(calm).parent for p in calm.glob("*/*/manifest.json")
    }
    for stage in ("score_pairs", "assemble", "search"):
        for path in calm.glob(f"{stage}/*/shards/part-*"):
            assert _sha(store / path.relative_to(calm)) == _sha(path), path
    models = "train/*/out-*/model/model.safetensors"
    ours, theirs = ({p.parts[-4]: _sha(p) for p in home.glob(models)} for home in (store, calm))
    assert ours == theirs and len(ours) == 1
    reports = [json.loads(Path(f"{home}-run/report.json").read_text()) for home in (store, calm)]
    for name, system in reports[1]["systems"].items():
        for metric in ("nDCG@10", "RR@10", "R@100"):
            assert reports[0]["systems"][name][metric] == system[metric]
    assert reports[0]["curve"] == reports[1]["curve"]


def test_nothing_of_the_killed_attempts_stays_in_the_way(killed: Any) -> None:
    store, _ = killed
    assert not list(store.glob("*/*/shards/attempts/*")) and not list(store.glob("*/*/shards/scratch/*"))
    for manifest in store.glob("*/*/manifest.json"):
        names = json.loads(manifest.read_text())["files"]
        assert names and all((manifest.parent / name).stat().st_size == size for name, size in names.items())


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.ray
def test_a_driver_killed_while_ray_scores_goes_on_without_ray(config: str, calm: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    more = ["resources.ray=auto", "resources.num_workers=1", "resources.cpus_per_worker=1"]
    process = _start(config, store, *more)
    finished = _kill_when(process, store, lambda: _unfinished(store, "score_pairs", "shards/part-*", 1))
    _finish(_start(config, store), store)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished} == finished
    import numpy as np

    for path in calm.glob("score_pairs/*/shards/part-*"):
        ours, theirs = pq.read_table(store / path.relative_to(calm)), pq.read_table(path)
        assert ours["doc_rows"] == theirs["doc_rows"]
        for a, b in zip(ours["teacher_scores"].to_pylist(), theirs["teacher_scores"].to_pylist(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def _train_workers() -> list[int]:
    """Ray Train workers below this very process."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if not (entry / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                continue
            parent = int(entry.name)
            while parent > 1 and parent != os.getpid():
                parent = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid():
            found.append(int(entry.name))
    return found


@pytest.mark.ray
def test_a_killed_train_worker_goes_on_from_its_checkpoint_to_the_same_weights(local_ray: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    from raydrd.stages.train import on_ray, worker

    def job(name: str) -> Any:
        made = replace(make_job(tmp_path / name, dropout=0.1), save_seconds=0.0)
        return replace(made, config=made.config.model_copy(update={"max_steps": 150}))

    cluster = Cluster(Resources(ray="local", train_workers=1, cpus_per_worker=1))
    calm, hit = job("calm"), job("hit")
    before = torch.get_num_threads()
    worker({"job": calm, "threads": 1, "alone": True})
    torch.set_num_threads(before)
    killed: list[int] = []

    def kill() -> None:
        scratch, end = Path(hit.scratch.uri), time.monotonic() + PATIENCE
        while not killed and time.monotonic() < end:
            if list(scratch.glob("checkpoint-*")) and (found := _train_workers()):
                killed.append(found[0])
                os.kill(found[0], signal.SIGKILL)
            time.sleep(0.005)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    on_ray(cluster, hit)
    thread.join(timeout=PATIENCE)
    assert killed, "it ended before it could be killed"
    ours, theirs = (load_file(j.out.local("model/model.safetensors")) for j in (hit, calm))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert hit.out.read_json("curve.json") == calm.out.read_json("curve.json")


def test_a_store_and_its_manifests_are_all_that_a_new_process_needs(calm: Path) -> None:
    keep = Store(Folder.of(calm), Cluster(Resources(ray="off")))
    for manifest in calm.glob("*/*/manifest.json"):
        stage, id_ = manifest.parent.parts[-2:]
        assert keep.find(stage, id_).id == id_
