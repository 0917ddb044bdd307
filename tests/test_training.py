"""A training step is what the global batch says, however it was cut; and a training run can be interrupted anywhere."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydrd.batching import SpecialTokens
from raydrd.objectives import Losses, Ordered, SameVectors
from raydrd.parts import Parts, part_name
from raydrd.storage import Folder
from raydrd.tables import LISTS, TOKENS, vectors
from raydrd.training import checkpoint
from raydrd.training.comm import Alone
from raydrd.training.loop import Job, Step, Texts, adamw, train_loop
from raydrd.training.plan import TrainConfig, batch_of, step_seed
from raydrd.training.sources import ListExamples, TextExamples
from tests.worlds import tiny_encoder

CPU = torch.device("cpu")
QUERIES, PASSAGES = 12, 40


def make_job(home: Path, *, dropout: float = 0.0, objective: Any = None, kind: str = "lists", **changes: Any) -> Job:
    """Twelve lists of 3 to 6 passages over random tokens, and a random encoder."""
    if not (home / "model").exists():
        tiny_encoder(home / "model", dropout=dropout)
    rng = np.random.default_rng(0)
    tokens = {}
    for role, rows in (("query", QUERIES), ("passage", PASSAGES)):
        folder = Folder.of(home / f"tokens-{role}")
        ids = [rng.integers(5, 100, rng.integers(1, 15)).astype(np.int32).tolist() for _ in range(rows)]
        folder.write_arrow(part_name(0, rows, "arrow"), pa.table([pa.array(ids, TOKENS.field(0).type)], schema=TOKENS))
        tokens[role] = Parts.of(folder, list(folder.files()))
    examples: Any
    if kind == "lists":
        sizes = [3 + n % 4 for n in range(QUERIES)]
        lists = Folder.of(home / "lists")
        docs = [rng.permutation(PASSAGES)[:n].tolist() for n in sizes]
        labels = [[1.0 / (m + 1) for m in range(n)] for n in sizes]
        nothing: list[list[float]] = [[] for _ in docs]
        flags = [[1] + [0] * (n - 1) for n in sizes]
        columns = [list(range(QUERIES)), docs, labels, labels, flags, nothing, nothing, [0.5] * QUERIES, nothing, nothing, nothing]
        rows = pa.table(columns, schema=LISTS)
        for lo, hi in ((0, 5), (5, QUERIES)):
            lists.write_table(part_name(lo, hi, "parquet"), rows.slice(lo, hi - lo))
        examples = ListExamples(lists=Parts.of(lists, list(lists.files())), tokens=tokens)
    else:
        stores = []
        for role, count in (("query", QUERIES), ("passage", PASSAGES)):
            folder = Folder.of(home / f"vectors-{role}")
            matrix = rng.standard_normal((count, 32)).astype(np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 32)
            folder.write_arrow(part_name(0, count, "arrow"), pa.table([column], schema=vectors(32, "float32")))
            stores.append((role, tokens[role], Parts.of(folder, list(folder.files()))))
        examples = TextExamples(tuple(stores))
    config = TrainConfig(learning_rate=1e-3, train_batch_size=6, max_steps=6, **changes.pop("config", {}))
    values: dict[str, Any] = {
        "start": Folder.of(home / "model"),
        "examples": examples,
        "objective": objective or Losses(terms=(Ordered(),), score_scale=20),
        "config": config,
        "precision": "fp32",
        "scratch": Folder.of(home / "scratch"),
        "out": Folder.of(home / "out"),
        "per_device": None,
        "tokens_per_batch": None,
        "save_seconds": 1e9,
    }
    return Job(**{**values, **changes})


def gradients(job: Job, *, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and losses of the first step, by the loop's own parts."""
    from raydrd.encoders import load_biencoder
    from raydrd.layout import read_layout
    from raydrd.parts import TokenReader

    path = job.start.local_folder()
    model = load_biencoder(path).train()
    if job.config.gradient_checkpointing:
        model.passage.backbone.activation_checkpointing_enable({"use_reentrant": False})
    source = job.examples.open()
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}
    texts = Texts(path, read_layout(path), readers, job.tokens_per_batch or 4096)
    torch.manual_seed(seed)
    losses = Step(job, Alone(), CPU, model, texts).backward(source, np.arange(job.config.train_batch_size))
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, losses


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], atol: float) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=5 * atol, msg=lambda m, name=name: f"{name}: {m}")


def weights(job: Job) -> dict[str, Tensor]:
    return load_file(job.out.local("model/model.safetensors"))


# -- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lists", "texts"])
@pytest.mark.parametrize("per_device", [1, 2, 4])
def test_micro_batches_are_one_batch(tmp_path: Path, kind: str, per_device: int) -> None:
    objective = SameVectors() if kind == "texts" else Losses(terms=(Ordered(),), score_scale=20)
    job = make_job(tmp_path, kind=kind, objective=objective)
    whole, losses = gradients(job)
    cut, cut_losses = gradients(replace(job, per_device=per_device))
    assert_same(whole, cut, 2e-6)
    assert losses == pytest.approx(cut_losses, rel=1e-5)
    assert max(g.abs().max() for g in whole.values()) > 1e-3


def test_token_budgets_change_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert_same(gradients(job)[0], gradients(replace(job, tokens_per_batch=64))[0], 2e-6)


@pytest.mark.parametrize("pool", ["next", "all"])
@pytest.mark.parametrize("per_device", [1, 2, 5])
def test_cached_in_batch_gradients_are_the_uncached_ones(tmp_path: Path, pool: Any, per_device: int) -> None:
    job = make_job(tmp_path, objective=Losses(terms=(Ordered(in_batch=pool),), score_scale=20), tokens_per_batch=64)
    whole, losses = gradients(job)
    cached, cached_losses = gradients(replace(job, per_device=per_device))
    assert_same(whole, cached, 2e-6)
    assert losses == pytest.approx(cached_losses, rel=1e-6)


def test_cached_gradients_with_dropout_see_the_same_dropout_twice(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        dropout=0.3,
        objective=Losses(terms=(Ordered(in_batch="all"),), score_scale=20),
        per_device=2,
        tokens_per_batch=64,
    )
    first, _ = gradients(job, seed=1)
    assert_same(first, gradients(job, seed=1)[0], 0.0)
    other, _ = gradients(job, seed=2)
    assert max((first[n] - other[n]).abs().max() for n in first) > 1e-4
    # One chunk a group: the same draws whether the vectors are cached or not would need the same seeds, so compare with
    # a plain forward and backward that draws each chunk's dropout from the seeds that the step drew.
    assert_same(first, _by_hand_with_dropout(job, seed=1), 2e-6)


def _by_hand_with_dropout(job: Job, *, seed: int) -> dict[str, Tensor]:
    from raydrd.encoders import load_biencoder
    from raydrd.layout import read_layout
    from raydrd.parts import TokenReader

    path = job.start.local_folder()
    model = load_biencoder(path).train()
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}
    step = Step(job, Alone(), CPU, model, Texts(path, read_layout(path), readers, job.tokens_per_batch or 4096))
    source = job.examples.open()
    batch = source.batch(np.arange(job.config.train_batch_size), source.width())
    torch.manual_seed(seed)
    chunks = step.texts.chunks(batch.rows)
    groups = -(-job.config.train_batch_size // (job.per_device or 1))
    size = -(-len(chunks) // groups)
    cut = [chunks[lo : lo + size] for lo in range(0, len(chunks), size)]
    seeds = [int(torch.randint(2**62, (1,)).item()) for _ in cut]
    made: list[Tensor] = []
    for group, drawn in zip(cut, seeds, strict=True):
        torch.manual_seed(drawn)
        made += step._forward(batch.rows, group)
    losses = job.objective(step._ordered(batch.rows, chunks, made), batch, Alone())
    torch.stack([total / count for total, count in losses.values()]).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    again = replace(job, config=job.config.model_copy(update={"gradient_checkpointing": True}))
    assert_same(gradients(job)[0], gradients(again)[0], 1e-6)


def test_the_step_is_a_slow_loop_over_plain_tensors(tmp_path: Path) -> None:
    """Loss and gradient of a step from nothing but the model and the lists: no batching, no padding, no sharing."""
    from transformers import AutoTokenizer

    from raydrd.encoders import load_biencoder
    from raydrd.losses import lambda_mrr
    from raydrd.parts import TokenReader

    job = make_job(tmp_path)
    found, losses = gradients(job)
    path = job.start.local_folder()
    model = load_biencoder(path).train()
    special = SpecialTokens.of(AutoTokenizer.from_pretrained(path))
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}

    def vector(role: str, row: int) -> Tensor:
        ids = special.single(readers[role].take(np.array([row]))[0], 64).ids
        tensor = torch.from_numpy(ids.astype(np.int64))[None]
        return (model.query if role == "query" else model.passage)(tensor, torch.ones_like(tensor))[0]  # type: ignore[no-any-return]

    rows = pa.concat_tables(t for _, t in job.examples.lists.each()).slice(0, 6).to_pylist()
    sums, count = torch.zeros(()), 0.0
    for row in rows:
        query = vector("query", row["query_row"])
        scores = torch.stack([query @ vector("passage", d) for d in row["doc_rows"]])[None] * 20
        total, number = lambda_mrr(scores, torch.tensor([row["labels"]]), torch.ones_like(scores, dtype=torch.bool))
        sums, count = sums + total, count + number
    (sums / count).backward()
    assert losses["ordered"] == pytest.approx(float(sums.detach() / count), rel=1e-5)
    assert_same(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, 5e-6)


# -- order and rate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "size"), [(10, 3), (7, 7), (5, 8), (100, 16), (1, 1)])
def test_every_epoch_holds_each_example_once(examples: int, size: int) -> None:
    steps = math.ceil(4 * examples / size)
    order = np.concatenate([batch_of(s, seed=3, examples=examples, size=size) for s in range(steps)])
    assert all(len(batch_of(s, seed=3, examples=examples, size=size)) == size for s in range(steps))
    epochs = [tuple(order[e * examples : (e + 1) * examples]) for e in range(4)]
    assert all(sorted(epoch) == list(range(examples)) for epoch in epochs)
    if examples >= 10:
        assert len(set(epochs)) == 4


def test_the_order_depends_on_seed_and_step_alone() -> None:
    wanted = [batch_of(s, seed=1, examples=50, size=8) for s in range(20)]
    np.random.seed(9)  # noqa: NPY002  (global state that must not matter)
    torch.manual_seed(9)
    for step in reversed(range(20)):
        np.testing.assert_array_equal(batch_of(step, seed=1, examples=50, size=8), wanted[step])
    assert any((batch_of(s, seed=2, examples=50, size=8) != wanted[s]).any() for s in range(3))
    # A smaller batch walks through the same order.
    fine = np.concatenate([batch_of(s, seed=1, examples=50, size=4) for s in range(40)])
    np.testing.assert_array_equal(fine, np.concatenate(wanted))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_rank_slices_are_disjoint_and_complete(world: int) -> None:
    for step in range(10):
        batch = batch_of(step, seed=0, examples=40, size=8)
        slices = [np.array_split(batch, world)[rank] for rank in range(world)]
        assert Counter(np.concatenate(slices).tolist()) == Counter(batch.tolist())
        assert {len(s) for s in slices} == {8 // world}


def test_dropout_seeds_differ_by_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600 and all(0 <= s < 2**63 for s in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_the_rate_warms_up_and_decays_linearly() -> None:
    config = TrainConfig(learning_rate=1.0, train_batch_size=1, max_steps=10, warmup_steps=4)
    rates = [config.rate(s, 10) for s in range(10)]
    np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(rates[4:], [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    share = TrainConfig(learning_rate=1.0, train_batch_size=1, max_steps=10, warmup_ratio=0.2)
    assert [share.rate(s, 10) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    one = TrainConfig(learning_rate=1.0, train_batch_size=1, max_steps=1, warmup_steps=100)
    assert one.rate(0, 1) == 1.0
    for steps in range(1, 30):
        assert all(0 < config.rate(s, steps) <= 1 for s in range(steps))


def test_epochs_become_steps() -> None:
    config = TrainConfig(learning_rate=1, train_batch_size=8, num_train_epochs=1.5)
    assert config.steps(100) == 19 and config.steps(1) == 1
    assert config.model_copy(update={"max_steps": 5}).steps(100) == 5


def test_weight_decay_is_for_matrices(tmp_path: Path) -> None:
    from raydrd.encoders import load_biencoder

    model = load_biencoder(tiny_encoder(tmp_path / "m"))
    optimizer = adamw(model, TrainConfig(learning_rate=1, train_batch_size=1, max_steps=1, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(decay) == len(names)
    for name, parameter in names.items():
        bare = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if bare else 0.3), name


# -- whole runs -----------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_a_model_and_its_curve(tmp_path: Path) -> None:
    job = make_job(tmp_path, config={"seed": 1})
    job = replace(job, config=job.config.model_copy(update={"max_steps": 30, "learning_rate": 3e-3}))
    train_loop(job, Alone(), CPU)
    curve = job.out.read_json("curve.json")
    assert [row[0] for row in curve] == list(range(1, 31))
    assert [row[2] for row in curve] == [job.config.rate(s, 30) for s in range(30)]
    assert np.mean([row[1] for row in curve[-4:]]) < 0.6 * np.mean([row[1] for row in curve[:4]])
    assert "tokenizer" in job.out.read_json("about.json")


def test_a_run_is_the_same_twice_and_another_with_another_seed(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate([1, 1, 2]):
        job = make_job(tmp_path / str(number), dropout=0.1, config={"seed": seed})
        torch.manual_seed(number)  # what came before must not matter
        train_loop(job, Alone(), CPU)
        found.append(weights(job))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(not torch.equal(found[0][n], found[2][n]) for n in found[0])


@pytest.mark.parametrize("kind", ["lists", "texts"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_dies_goes_on_to_the_very_same_weights(
    tmp_path: Path, kind: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = SameVectors() if kind == "texts" else Losses(terms=(Ordered(),), score_scale=20)
    calm = make_job(tmp_path / "calm", kind=kind, objective=objective, dropout=0.1)
    train_loop(calm, Alone(), CPU)
    job = replace(make_job(tmp_path / "hit", kind=kind, objective=objective, dropout=0.1), save_seconds=0.0)
    backward, done, limit = Step.backward, [], [stop]

    def dies(self: Step, source: Any, mine: Any, **more: Any) -> dict[str, float]:
        done.append(mine[0].tolist())
        if len(done) > limit[0]:
            raise MemoryError("killed")
        return backward(self, source, mine, **more)

    monkeypatch.setattr(Step, "backward", dies)
    with pytest.raises(MemoryError):
        train_loop(job, Alone(), CPU)
    assert not job.out.exists("curve.json")
    assert checkpoint.latest(job.scratch) == stop
    assert [n for n in job.scratch.files() if n.startswith("checkpoint")] == [f"checkpoint-{stop:09d}.safetensors"]
    torch.manual_seed(99)
    done.clear()
    limit[0] = 99
    train_loop(job, Alone(), CPU)
    order = [batch_of(n, seed=job.config.seed, examples=len(job.examples.open()), size=6).tolist() for n in range(6)]
    assert done == order[stop:]  # the steps that were missing, and no others
    assert all(torch.equal(weights(calm)[n], weights(job)[n]) for n in weights(calm))
    assert job.out.read_json("curve.json") == calm.out.read_json("curve.json")


def test_a_checkpoint_holds_weights_moments_and_curve(tmp_path: Path) -> None:
    from raydrd.encoders import load_biencoder

    config = TrainConfig(learning_rate=1e-2, train_batch_size=1, max_steps=9)
    folder = Folder.of(tmp_path / "c")
    assert checkpoint.latest(folder) == 0
    model = load_biencoder(tiny_encoder(tmp_path / "m"))
    optimizer = adamw(model, config)

    def update(m: Any, o: Any, value: float) -> None:
        for p in m.parameters():
            p.grad = torch.full_like(p, value)
        o.step()

    update(model, optimizer, 0.5)
    for step in (1, 2):
        checkpoint.save(folder, step=step, model=model, optimizer=optimizer, curve=[[1, 0.1 + 0.2, 1e-5]])
    assert list(folder.files()) == ["checkpoint-000000002.safetensors"] and checkpoint.latest(folder) == 2
    other = load_biencoder(tiny_encoder(tmp_path / "n", seed=5))
    second = adamw(other, config)
    assert checkpoint.restore(folder, step=2, model=other, optimizer=second) == [[1, 0.1 + 0.2, 1e-5]]
    for m, o in ((model, optimizer), (other, second)):
        update(m, o, -0.25)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)

    class Three(Alone):
        world = 4

    with pytest.raises(ValueError, match="train_batch_size 6 cannot be shared by 4 workers evenly"):
        train_loop(job, Three(), CPU)
    wild = replace(job, config=job.config.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}))
    with pytest.raises(ValueError, match="the gradient is not finite; lower learning_rate or set precision: fp32"):
        train_loop(wild, Alone(), CPU)
    empty = Folder.of(tmp_path / "none")
    empty.write_table(part_name(0, 0, "parquet"), LISTS.empty_table())
    nothing = replace(job, examples=replace(job.examples, lists=Parts.of(empty, list(empty.files()))))
    with pytest.raises(ValueError, match="no examples to train on"):
        train_loop(nothing, Alone(), CPU)


# -- two ranks --------------------------------------------------------------------------------------------


def _rank(rank: int, home: str, port: int) -> None:
    """One of two processes: trains every job in turn, then looks at the gradient of a gathered tensor."""
    import pickle

    import torch.distributed as dist

    from raydrd.training.comm import Ranks

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm = Ranks(CPU)
    for job in pickle.loads((Path(home) / "jobs.pkl").read_bytes()):
        train_loop(job, comm, CPU)
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
    "vectors": {"objective": SameVectors(), "kind": "texts"},
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by two processes over gloo."""
    import pickle

    home = tmp_path_factory.mktemp("ranks")
    jobs = [make_job(home / name, **values) for name, values in VARIANTS.items()]
    (home / "jobs.pkl").write_bytes(pickle.dumps(jobs))
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


def test_gathering_gives_every_owner_the_full_gradient(two_ranks: Path) -> None:
    import pickle

    found = [pickle.loads((two_ranks / f"rank-{rank}.pkl").read_bytes()) for rank in range(2)]
    for rank in range(2):
        assert found[rank]["gathered"] == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
        assert found[rank]["grad"] == [[30.0] * 3] * 2  # 10 + 20: detaching the other's part would give 10 or 20
        assert found[rank]["flags"] == [True, True, False, True]
        assert found[rank]["sums"] == {"a": 1.0, "b": 1.0}
        assert found[rank]["agreed"] == 7
