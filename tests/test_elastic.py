"""Training on machines that come short: uneven shares, fewer workers, a node that goes, a rank that sticks."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydrd.config import Resources, validate
from raydrd.errors import InputError, StageError
from raydrd.methods.objectives import Losses, Ordered, SameVectors
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.stages.train import Group, plan_group
from raydrd.training import checkpoint, notes
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.loop import train_loop
from raydrd.training.notes import Note
from raydrd.training.watch import Watch
from tests.shrinking import shrinking_job
from tests.training_jobs import CPU, make_job, method_job, weights

# -- shares of a batch that does not divide -----------------------------------------------------------

UNEVEN: dict[str, dict[str, Any]] = {
    "lists": {"objective": Losses(terms=(Ordered(),), score_scale=20)},
    "all": {"objective": Losses(terms=(Ordered(in_batch="all"),), score_scale=20)},
    "next": {"objective": Losses(terms=(Ordered(in_batch="next"),), score_scale=20)},
    "all cached": {
        "objective": Losses(terms=(Ordered(in_batch="all"),), score_scale=20), "per_device": 2, "tokens_per_batch": 64,
    },
    "vectors": {"objective": SameVectors(), "kind": "texts"},
}  # fmt: skip


POOLED = ("prod, whole batch", "pairdistill, dpr", "md2pr")
CRAMPED = ("lists", "all")


def _jobs(home: Path) -> dict[str, Job]:
    jobs = {name: make_job(home / name, **values) for name, values in UNEVEN.items()}
    jobs |= {name: method_job(home / name, name) for name in POOLED}
    # A rank that has no memory for its share while the other has: last, because the wrapper stays.
    jobs |= {f"cramped {name}": make_job(home / f"cramped {name}", **UNEVEN[name]) for name in CRAMPED}
    return {name: replace(job, config=job.config.model_copy(update={"train_batch_size": 5})) for name, job in jobs.items()}


def _rank(rank: int, home: str, port: int) -> None:
    """One of two processes; shares of three and two examples."""
    import torch.distributed as dist

    from raydrd.training.comm import Ranks
    from tests.test_too_large import Memory

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    patch = pytest.MonkeyPatch()
    for name, job in _jobs(Path(home)).items():
        if name.startswith("cramped") and rank == 1:
            memory = Memory(patch, 90)
        train_loop(job, Ranks(CPU), CPU)
        assert not name.startswith("cramped") or rank == 0 or memory.refused > 0
    comm = Ranks(CPU)
    mine = torch.from_numpy(comm.cut(np.arange(5))).float().requires_grad_()
    everyone = comm.gather(mine)
    (everyone * torch.arange(5) * (rank + 1)).sum().backward()
    assert mine.grad is not None
    found = {"all": everyone.tolist(), "grad": mine.grad.tolist(), "at": comm.offset(len(mine)), "entered": comm.entered}
    (Path(home) / f"rank-{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("uneven")
    _jobs(home)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    torch.multiprocessing.spawn(_rank, (str(home), port), nprocs=2, join=True)
    return home


@pytest.mark.parametrize("name", [*UNEVEN, *POOLED, *(f"cramped {name}" for name in CRAMPED)])
def test_uneven_shares_train_what_one_worker_does(uneven: Path, tmp_path: Path, name: str) -> None:
    both, alone = _jobs(uneven)[name], replace(_jobs(tmp_path)[name], per_device=None)
    train_loop(alone, Alone(), CPU)
    begin, moved = load_file(alone.start.local("model.safetensors")), 0.0
    for key, value in weights(alone).items():
        torch.testing.assert_close(weights(both)[key], value, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
        moved = max(moved, float((value - begin[key]).abs().max()))
    assert moved > 1e-3, "nothing was trained"


def test_uneven_rows_are_gathered_in_order_and_their_gradients_go_home(uneven: Path) -> None:
    ranks = [pickle.loads((uneven / f"rank-{rank}.pkl").read_bytes()) for rank in range(2)]
    assert [r["all"] for r in ranks] == [[0.0, 1.0, 2.0, 3.0, 4.0]] * 2
    assert [r["at"] for r in ranks] == [0, 3]
    assert [r["grad"] for r in ranks] == [[0.0, 3.0, 6.0], [9.0, 12.0]]  # weights of both ranks: 1 + 2
    assert ranks[0]["entered"] == ranks[1]["entered"] == 2


# -- how many workers ---------------------------------------------------------------------------------


def test_workers_are_a_number_or_a_range() -> None:
    for given, value, both in ((3, 3, (3, 3)), ([1, 4], (1, 4), (1, 4)), (0, 0, (0, 0)), ((2, 2), (2, 2), (2, 2))):
        resources = validate(Resources, {"train_workers": given}, "x.yaml")
        assert resources.train_workers == value and resources.train_range() == both
        assert Resources.model_validate(json.loads(resources.model_dump_json())) == resources
    for wrong in (-1, [0, 2], [3, 2], [1], "2", True, 1.5, [1, 2, 3], None):
        with pytest.raises(InputError) as caught:
            validate(Resources, {"train_workers": wrong}, "x.yaml")
        assert str(caught.value) == (
            "x.yaml: train_workers: value error, write a number of workers, 0 for this process, or a range such as [1, 4] "
            f"(got {wrong!r})"
        )


class Pretended:
    """A cluster of nodes that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpus: list[int], gpus: list[int], *, local: bool, **more: Any) -> None:
        import ray

        nodes = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in zip(cpus, gpus, strict=True)]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        self.is_local, self.resources = local, Resources(**more)

    def start(self) -> None: ...


@pytest.mark.parametrize(
    ("cpus", "gpus", "local", "asked", "batch", "expected"),
    [
        ([9], [0], True, 2, 16, Group(2, 2, 4, False)),
        ([9], [0], True, (1, 4), 16, Group(1, 4, 2, False)),
        ([3], [0], True, (1, 4), 16, Group(1, 2, 1, False)),  # this machine will not grow
        ([3], [0], False, (1, 4), 16, Group(1, 4, 1, False)),  # a cluster may
        ([16, 16], [4, 4], False, (2, 8), 64, Group(2, 8, 1, True)),
        ([16, 16], [4, 4], False, (2, 8), 3, Group(2, 3, 1, True)),  # no rank without an example
        ([16, 16], [4, 4], False, 8, 2, Group(2, 2, 1, True)),
    ],
)
def test_a_group_is_what_was_asked_for_and_fits(
    monkeypatch: pytest.MonkeyPatch, cpus: Any, gpus: Any, local: bool, asked: Any, batch: int, expected: Group
) -> None:
    cluster: Any = Pretended(monkeypatch, cpus, gpus, local=local, train_workers=asked)
    assert plan_group(cluster, batch) == expected


def test_fewer_than_the_fewest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster: Any = Pretended(monkeypatch, [4], [0], local=False, train_workers=(4, 8))
    with pytest.raises(InputError, match="resources.train_workers: 4 workers need as many cores, 3 are free"):
        plan_group(cluster, 16)
    assert Group(1, 4, 2, True).in_words() == "1 to 4 workers of 2 CPUs and 1 GPU each"
    assert Group(1, 1, 1, False).in_words() == "1 worker of 1 CPU each"


# -- who is missing -----------------------------------------------------------------------------------


def _note(entered: int, step: int, at: float, world: int = 3) -> dict[str, Any]:
    return {"entered": entered, "step": step, "at": at, "world": world, "say": ""}


def test_the_rank_that_the_others_wait_for_is_named() -> None:
    found = {0: _note(84, 40, 1000.0), 1: _note(81, 40, 1000.5), 2: _note(84, 40, 1001.0)}

    def said(dead: list[int], own: dict[int, str], now: float) -> str:
        return notes.fault(found, dead, own, limit=60, now=now)

    assert said([], {0: "Timed out"}, 1061.5) == "rank 1 of 3 stopped answering at step 40; the others waited 60 s"
    # NCCL ends the processes that waited: they are dead, and still it was the other.
    assert said([0, 2], {}, 1061.5) == "rank 1 of 3 stopped answering at step 40; the others waited 60 s"
    # Killed: the notes are fresh.
    assert said([2], {}, 1003.0) == "rank 2 of 3 ended at step 40: killed, out of memory, or its node is gone"
    assert said([], {2: "KeyError: 7"}, 1003.0) == "rank 2 of 3 failed at step 40: KeyError: 7"
    assert notes.fault({}, [], {0: "no GPU"}, limit=60, now=1.0) == "the workers could not begin: no GPU"


def test_what_ranks_raise_becomes_the_one_that_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError

    from raydrd.stages import train

    scratch = Folder.of(tmp_path)
    reset = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:61669: Connection reset by peer. GLHF!")

    def told(errors: dict[int, Exception]) -> str:
        for rank, entered in enumerate((12, 10, 9)):
            (scratch / "ranks").write_json(f"{rank}.json", _note(entered, 4, time.time()))
        train.note_fault(scratch, errors, 600)
        assert notes.read(scratch) == {}  # the next attempt writes its own
        return str(scratch.read_json(notes.FAULT)["text"])

    def settle(seconds: float) -> None:  # rank 2 lives and gets as far as the others
        (scratch / "ranks").write_json("2.json", _note(12, 4, time.time()))

    monkeypatch.setattr(train.time, "sleep", settle)
    gone = "rank 1 of 3 ended at step 4: killed, out of memory, or its node is gone"
    assert told({0: reset}) == gone
    assert told({0: reset, 1: ActorDiedError()}) == gone
    assert told({0: reset, 2: RuntimeError("shapes do not fit")}) == "rank 2 of 3 failed at step 4: shapes do not fit"


def test_notes_are_written_while_a_rank_sleeps_and_old_ones_do_not_count(tmp_path: Path) -> None:
    scratch = Folder.of(tmp_path)

    class Two(Alone):
        rank, world, entered = 1, 2, 0

    comm = Two()
    for rank in (2, 3):  # of an attempt with four workers
        (scratch / "ranks").write_json(f"{rank}.json", _note(999, 50, time.time() - 100, world=4))
    with Note(scratch, comm) as note:
        assert notes.read(scratch)[1]["step"] == 0
        note.step, comm.entered = 7, 31
        time.sleep(1.6)  # the rank sleeps, the note does not
        found = notes.read(scratch)
    assert sorted(found) == [1] and (found[1]["step"], found[1]["entered"]) == (7, 31)
    notes.clear(scratch)
    assert notes.read(scratch) == {}


class Bar:
    n = 0.0

    def update(self, n: float = 1) -> None:
        self.n += n

    def set_postfix(self, **values: Any) -> None: ...


def test_a_training_that_does_not_move_says_what_it_waits_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch, shown = Folder.of(tmp_path), Bar()
    group, room = Group(1, 2, 4, False).in_words(), "cluster has 2 CPUs"
    with Watch("train", scratch, shown, seconds=0.6, workers=group, room=lambda: room) as watch:
        time.sleep(1.2)
        (scratch / "ranks").write_json("0.json", _note(5, 3, time.time(), world=2))
        assert watch.why().startswith("1 of 2 ranks have begun; waiting for rank 1 (cluster has 2 CPUs)")
        (scratch / "ranks").write_json("1.json", _note(4, 3, time.time() - 30, world=2))
        assert watch.why() == "rank 1 of 2 is at step 3 since 30 s"
        scratch.write_json("progress.json", {"step": 9, "loss": 0.5})
        scratch.write_json("fault.json", {"text": "rank 1 of 2 ended at step 3", "at": 5.0})
        time.sleep(1.3)
    said = capsys.readouterr().err.splitlines()
    assert shown.n == 9
    waits = [line for line in said if "nothing learnt for 1 s" in line]
    assert waits[:1] == [
        "  train: nothing learnt for 1 s; waiting for 1 to 2 workers of 4 CPUs each, none has begun (cluster has 2 CPUs)"
    ]
    assert said.count("  train: rank 1 of 2 ended at step 3; it goes on from its last checkpoint") == 1


def test_workers_that_fail_again_and_again_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydrd.stages import train

    job, begun = make_job(tmp_path), []

    def fails(cluster: Any, job: Job, group: Group) -> None:
        begun.append(checkpoint.latest(job.scratch))
        if len(begun) < 3:  # it comes a little further each time, and then no more
            job.scratch.write_bytes(f"checkpoint-{10 * len(begun):09d}.safetensors", b"")
        job.scratch.write_json(notes.FAULT, {"text": "rank 1 of 2 ended at step 23", "at": 1.0})
        raise RuntimeError("WorkerGroupError")

    monkeypatch.setattr(train, "_fit", fails)
    monkeypatch.setattr(train, "shared_or_refuse", lambda folder: None)
    with pytest.raises(StageError, match="training failed 4 times from step 20 on: rank 1 of 2 ended at step 23"):
        train.on_ray(Cluster(Resources()), job, Group(1, 2, 1, False))
    assert begun == [0, 10, 20]


# -- for real -----------------------------------------------------------------------------------------


def _shrink(home: Path, what: str) -> tuple[dict[str, Any], list[str]]:
    """What the program of tests.shrinking prints, and what it said meanwhile."""
    with open(f"{home}.err", "wb") as log:
        process = subprocess.run(
            [sys.executable, "-m", "tests.shrinking", str(home), what],
            stdout=subprocess.PIPE, stderr=log, timeout=560, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )  # fmt: skip
    said = Path(f"{home}.err").read_text(errors="replace").splitlines()
    assert process.returncode == 0, "\n".join(said[-30:])
    (printed,) = [line for line in process.stdout.splitlines() if line.startswith(b"{")]
    return json.loads(printed), said


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_node_that_goes_leaves_a_training_by_fewer_to_the_same_weights(tmp_path: Path) -> None:
    found, said = _shrink(tmp_path / "hit", "node")
    assert found == {"worlds": [2, 1], "error": ""}
    assert any("of 2 ended at step" in line and "its node is gone" in line for line in said), said
    calm, hit = shrinking_job(tmp_path / "calm"), shrinking_job(tmp_path / "hit")
    train_loop(calm, Alone(), CPU)
    begin = load_file(calm.start.local("model.safetensors"))
    for name, value in weights(calm).items():
        torch.testing.assert_close(weights(hit)[name], value, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert max(float((weights(calm)[n] - begin[n]).abs().max()) for n in weights(calm)) > 1e-2
    losses = [np.array([row[1] for row in job.out.read_json("curve.json")]) for job in (hit, calm)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)  # each step saw the same examples


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_rank_that_sleeps_for_ever_is_named_and_the_training_goes_on(tmp_path: Path) -> None:
    found, said = _shrink(tmp_path / "hit", "stuck")
    assert found["error"] == "" and (tmp_path / "hit" / "stuck").read_text() == "stuck\n"
    (line,) = [line for line in said if "stopped answering" in line]
    assert line == (
        "  train: rank 1 of 2 stopped answering at step 9; the others waited 15 s; it goes on from its last checkpoint"
    )
    assert len(shrinking_job(tmp_path / "hit").out.read_json("curve.json")) == 40
