"""Two processes train what one does, with the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydrd.methods.nested import Nested
from raydrd.methods.objectives import Losses, Ordered, SameVectors
from raydrd.training.comm import Alone
from raydrd.training.loop import train_loop
from tests.late_worlds import late_model
from tests.training_jobs import CPU, METHODS, assert_same, gradients, make_job, method_job, weights


def _rank(rank: int, home: str, port: int) -> None:
    """One of two processes: trains every job in turn, then looks at the gradient of a gathered tensor."""
    import pickle

    import torch.distributed as dist

    from raydrd.training.comm import Ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm = Ranks(CPU)
    whole, once = pickle.loads((Path(home) / "jobs.pkl").read_bytes())
    for job in whole:
        train_loop(job, comm, CPU)
    slopes = {key: gradients(job, progress=0.3, comm=comm) for key, job in once.items()}
    own = torch.full((2, 3), float(rank + 1), requires_grad=True)
    everyone = comm.gather(own)
    # Each rank weighs all rows by its own number: the gradient of my rows is the sum over ranks, not my share of it.
    (everyone * (10.0 * (rank + 1))).sum().backward()
    flags = comm.gather(torch.tensor([rank == 0, True]))
    assert flags.dtype == torch.bool
    found = {
        "gathered": everyone.tolist(),
        "grad": own.grad.tolist(),  # type: ignore[union-attr]
        "flags": flags.tolist(),
        "sums": comm.sums({"a": float(rank), "b": 0.5}),
        "agreed": comm.agreed(7 + rank),
        "slopes": slopes,
    }
    (Path(home) / f"rank-{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"objective": Losses(terms=(Ordered(),), score_scale=20)},
    "all": {"objective": Losses(terms=(Ordered(in_batch="all"),), score_scale=20)},
    "next": {"objective": Losses(terms=(Ordered(in_batch="next"),), score_scale=20)},
    "all cached": {
        "objective": Losses(terms=(Ordered(in_batch="all"),), score_scale=20),
        "per_device": 1,
        "tokens_per_batch": 64,
    },
    "widths": {
        "objective": Nested(objective=Losses(terms=(Ordered(in_batch="all"),), score_scale=20), dims=(32, 8), normalize=True)
    },
    "vectors": {"objective": SameVectors(), "kind": "texts"},
}


LATE = ("pairdistill", "pairdistill, dpr", "prod, whole batch")  # of METHODS, with token vectors: lists, and pools


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by two processes over gloo."""
    import pickle

    home = tmp_path_factory.mktemp("ranks")
    jobs = [make_job(home / name, **values) for name, values in VARIANTS.items()]
    once = {(name, n): method_job(home / "methods", name, per_device=n) for name in METHODS for n in (None, 1)}
    late_model(home / "late" / "model")  # the others' jobs make a bi-encoder, this one finds a folder
    once |= {("late " + name, n): method_job(home / "late", name, per_device=n) for name in LATE for n in (None, 1)}
    (home / "jobs.pkl").write_bytes(pickle.dumps((jobs, once)))
    torch.multiprocessing.spawn(_rank, (str(home), _free_port()), nprocs=2, join=True)
    return home


@pytest.mark.parametrize("name", VARIANTS)
def test_two_workers_train_what_one_does(two_ranks: Path, tmp_path: Path, name: str) -> None:
    both = make_job(two_ranks / name, **VARIANTS[name])
    alone = make_job(tmp_path, **{**VARIANTS[name], "per_device": None})
    train_loop(alone, Alone(), CPU)
    begin = load_file(alone.start.local("model.safetensors"))
    moved = 0.0
    for key, value in weights(alone).items():
        torch.testing.assert_close(weights(both)[key], value, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
        moved = max(moved, float((value - begin[key]).abs().max()))
    assert moved > 1e-3, "nothing was trained"
    curves = [[row[1] for row in job.out.read_json("curve.json")] for job in (both, alone)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("per_device", [None, 1])
@pytest.mark.parametrize(("student", "name"), [("", name) for name in METHODS] + [("late ", name) for name in LATE])
def test_two_workers_have_the_gradients_of_one(two_ranks: Path, name: str, student: str, per_device: int | None) -> None:
    import pickle

    alone, losses = gradients(method_job(two_ranks / ("late" if student else "methods"), name), progress=0.3)
    for rank in range(2):
        both, found = pickle.loads((two_ranks / f"rank-{rank}.pkl").read_bytes())["slopes"][student + name, per_device]
        assert_same(both, alone, 1e-4 if student else 1e-5)  # sums over a query's tokens, times 20
        assert found == pytest.approx(losses, rel=1e-4)
    assert max(g.abs().max() for g in alone.values()) > 1e-3


def test_gathering_gives_every_owner_the_full_gradient(two_ranks: Path) -> None:
    import pickle

    found = [pickle.loads((two_ranks / f"rank-{rank}.pkl").read_bytes()) for rank in range(2)]
    for rank in range(2):
        assert found[rank]["gathered"] == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
        assert found[rank]["grad"] == [[30.0] * 3] * 2  # 10 + 20: detaching the other's part would give 10 or 20
        assert found[rank]["flags"] == [True, True, False, True]
        assert found[rank]["sums"] == {"a": 1.0, "b": 1.0}
        assert found[rank]["agreed"] == 7
