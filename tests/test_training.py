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
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.objectives import (
    Contrastive,
    Distil,
    ListBatch,
    Losses,
    MarginMSE,
    Ordered,
    Pairwise,
    SameVectors,
)
from raydrd.methods.pacing import SelfPaced
from raydrd.methods.wordmaps import WordMaps
from raydrd.models.batching import SpecialTokens
from raydrd.spine.parts import Chain, Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import LISTS, TOKENS, vectors
from raydrd.training import checkpoint
from raydrd.training.comm import Alone
from raydrd.training.loop import Job, Step, Texts, adamw, train_loop
from raydrd.training.plan import TrainConfig, batch_of, epochs_of, step_seed
from raydrd.training.sources import ListExamples, ListSource, TextExamples
from raydrd.training.words import Words, WordTeacher, chosen
from tests.worlds import tiny_cross_encoder, tiny_encoder

CPU = torch.device("cpu")
QUERIES, PASSAGES = 12, 40


def make_job(home: Path, *, dropout: float = 0.0, objective: Any = None, kind: str = "lists", **changes: Any) -> Job:
    """Twelve lists of 3 to 6 passages over random tokens, and a random encoder; kind `rich`: see `rich_lists`."""
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
        empty = [nothing] * 3
        columns = [list(range(QUERIES)), docs, labels, labels, flags, nothing, nothing, [0.5] * QUERIES, *empty]
        rows = pa.table(columns, schema=LISTS)
        for lo, hi in ((0, 5), (5, QUERIES)):
            lists.write_table(part_name(lo, hi, "parquet"), rows.slice(lo, hi - lo))
        examples = ListExamples(lists=Parts.of(lists, list(lists.files())), tokens=tokens)
    elif kind == "rich":
        examples = rich_lists(home, tokens["query"], tokens["passage"])
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


def rich_lists(home: Path, queries: Parts, corpus: Parts) -> ListExamples:
    """Twelve lists with everything that may join one: dark passages (rows after the corpus' last), suspects, queries without
    a label, passages without a teacher score, anchors, pairs, positives outside the list, a bi-encoder teacher's vectors.
    """
    rng = np.random.default_rng(1)
    written = Folder.of(home / "tokens-written")
    ids = [rng.integers(5, 100, 9).astype(np.int32).tolist() for _ in range(QUERIES)]
    written.write_arrow(part_name(0, QUERIES, "arrow"), pa.table([pa.array(ids, TOKENS.field(0).type)], schema=TOKENS))
    stores = {}
    for role, count in (("query", QUERIES), ("passage", PASSAGES + QUERIES)):
        folder = Folder.of(home / f"teacher-{role}")
        column = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(count * 8).astype(np.float32)), 8)
        folder.write_arrow(part_name(0, count, "arrow"), pa.table([column], schema=vectors(8, "float32")))
        stores[role] = Parts.of(folder, list(folder.files()))
    lists = []
    for q in range(QUERIES):
        size, labelled = 4 + q % 3, q % 4 != 3
        docs, flags = rng.permutation(PASSAGES)[:size], [POSITIVE if labelled else 0] + [0] * (size - 1)
        teacher = (2 * rng.standard_normal(size)).astype(np.float32)
        if q % 3 == 0:
            flags[1] = SUSPECT
        if q % 2 == 0:
            docs[-1], flags[-1] = PASSAGES + q, DARK
        if q % 5 == 0:
            teacher[2] = np.nan
        lists.append(
            {
                "query_row": q,
                "doc_rows": docs,
                "labels": [1.0 / (n + 1) for n in range(size)],
                "teacher_scores": teacher,
                "flags": flags,
                "anchor_scores": rng.standard_normal(size),
                "relevant": rng.permutation(PASSAGES)[: q % 3],
                "confidence": (q + 1) / 13 if labelled else math.nan,
                "pair_left": [0, 2] if q % 4 else [],
                "pair_right": [1, 0] if q % 4 else [],
                "pair_p": [0.9, 0.3] if q % 4 else [],
            }
        )
    folder = Folder.of(home / "lists")
    folder.write_table(part_name(0, QUERIES, "parquet"), pa.Table.from_pylist(lists, schema=LISTS))
    return ListExamples(
        lists=Parts.of(folder, list(folder.files())),
        tokens={"query": queries, "passage": Chain((corpus, Parts.of(written, list(written.files()))))},
        teacher_vectors=stores,
    )


def word_teacher(home: Path, **rule: Any) -> WordTeacher:
    """A random cross-encoder that is sure of which words belong together."""
    if not (home / "reader").exists():
        tiny_cross_encoder(home / "reader", seed=3)
        file = home / "reader" / "model.safetensors"  # as drawn, its attention is all but even
        save_file({name: 8 * t if t.ndim > 1 else t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    return WordTeacher(rule=WordMaps(projection=8, **rule), model=Folder.of(home / "reader"), seed=7)


def gradients(
    job: Job, *, seed: int = 0, progress: float = 0.0, comm: Any = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and losses of the first step, by the loop's own parts; with `comm` those of all ranks together."""
    from raydrd.models.encoders import load_biencoder
    from raydrd.models.layout import read_layout
    from raydrd.spine.parts import TokenReader

    path = job.start.local_folder()
    model = load_biencoder(path).train()
    if job.config.gradient_checkpointing:
        model.passage.backbone.activation_checkpointing_enable({"use_reentrant": False})
    source = job.examples.open()
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}
    texts = Texts(path, read_layout(path), readers, job.tokens_per_batch or 4096)
    named, words = dict(model.named_parameters()), None
    if job.words is not None:
        layout = read_layout(path)
        words = Words(
            job.words, model=model, special=texts.special, layout=layout, tokens=readers, precision="fp32", device=CPU
        )
        assert words.projection is not None
        named["projection"] = words.projection.weight
    torch.manual_seed(seed)
    numbers, comm = np.arange(job.config.train_batch_size), comm or Alone()
    mine = np.array_split(numbers, comm.world)[comm.rank]
    losses = Step(job, comm, CPU, model, texts, words).backward(source, mine, progress=progress)
    if comm.world > 1:
        comm.sum_gradients(torch.nn.ParameterList(named.values()))
    return {n: p.grad.clone() for n, p in named.items() if p.grad is not None}, losses


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


def losses_of(*terms: Any, **more: Any) -> Losses:
    return Losses(terms=terms, score_scale=20, **more)


PROD = {"temperature": 4.0, "both_sides": True}
# Every term and what joins it, on lists that hold everything. Pacing is tried where it reads confidences of the whole
# training set; `batch_topk` depends on the batch by its definition.
METHODS: dict[str, Losses] = {
    "adam": losses_of(Distil(), Contrastive(weight=0.1), pacing=SelfPaced(rho0=0.5)),
    "adam, all": losses_of(Distil(), Contrastive(), pacing=SelfPaced(mode="soft", scope="all", rho0=0.3)),
    "prod": losses_of(Contrastive(weight=0.1, in_batch=False), Distil(**PROD), Distil(source="anchor", **PROD)),
    "prod, whole batch": losses_of(Contrastive(weight=0.1), Distil(over="global", teacher_scale=0.5, **PROD)),
    "pairdistill": losses_of(Distil(temperature=2.0), Pairwise(), Contrastive(own_negatives=False, positive="teacher_top1")),
    "pairdistill, dpr": losses_of(Distil(over="batch", temperature=2.0), Pairwise(weight=1.0)),
    "md2pr": losses_of(Contrastive(), Distil(suspects="mask")),
    "margin mse": losses_of(MarginMSE(teacher_scale=0.5)),
}


def method_job(home: Path, name: str, **changes: Any) -> Job:
    words = word_teacher(home, warmup=0.0, negatives=2) if name == "md2pr" else None
    return make_job(home, kind="rich", objective=METHODS[name], words=words, **changes)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_of_every_method_are_one_batch(tmp_path: Path, name: str) -> None:
    job = method_job(tmp_path, name)
    whole, losses = gradients(job, progress=0.3)
    expected = {"adam": 2, "adam, all": 2, "prod": 3, "prod, whole batch": 2, "pairdistill": 3, "pairdistill, dpr": 2}
    assert len(losses) == {**expected, "md2pr": 3, "margin mse": 1}[name] and all(v > 0 for v in losses.values())
    assert max(g.abs().max() for g in whole.values()) > 1e-3
    for per_device in (1, 2, 4):
        cut, cut_losses = gradients(replace(job, per_device=per_device, tokens_per_batch=64), progress=0.3)
        assert_same(whole, cut, 1e-5)
        assert losses == pytest.approx(cut_losses, rel=1e-4)


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
    from raydrd.models.encoders import load_biencoder
    from raydrd.models.layout import read_layout
    from raydrd.spine.parts import TokenReader

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

    from raydrd.methods.losses import lambda_mrr
    from raydrd.models.encoders import load_biencoder
    from raydrd.spine.parts import TokenReader

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
    from raydrd.models.encoders import load_biencoder

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
    from raydrd.models.encoders import load_biencoder

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


def train_until_killed(job: Job, stop: int) -> None:
    """Train with a checkpoint after each step, and die in step `stop`."""
    backward, done = Step.backward, []

    def dies(self: Step, *args: Any, **more: Any) -> dict[str, float]:
        done.append(1)
        if len(done) > stop:
            raise MemoryError("killed")
        return backward(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "backward", dies)
        with pytest.raises(MemoryError):
            train_loop(job, Alone(), CPU)
    assert not job.out.exists("curve.json") and checkpoint.latest(job.scratch) == stop


def test_passages_are_drawn_anew_each_epoch_and_alike_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawing(home: Path) -> Job:
        job = make_job(home, kind="rich", objective=losses_of(Distil(), Pairwise()), save_seconds=0.0)
        assert isinstance(job.examples, ListExamples)
        return replace(job, examples=replace(job.examples, group=3, seed=5))

    read, seen = ListSource.batch, []

    def watched(self: ListSource, numbers: Any, width: Any = None, epochs: Any = None) -> Any:
        made = read(self, numbers, width, epochs)
        assert isinstance(made, ListBatch)
        docs = [row[there].tolist() for row, there in zip(made.doc_rows_QN, made.mask_QN, strict=True)]
        seen.append((epochs.tolist(), dict(zip(numbers.tolist(), docs, strict=True))))
        return made

    calm, hit = drawing(tmp_path / "calm"), drawing(tmp_path / "hit")
    monkeypatch.setattr(ListSource, "batch", watched)
    train_loop(calm, Alone(), CPU)
    steps, seen = seen, []
    assert [epochs for epochs, _ in steps] == [[e] * 6 for e in (0, 0, 1, 1, 2, 2)]
    epochs = [{**steps[n][1], **steps[n + 1][1]} for n in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(QUERIES)) for epoch in epochs)  # every list, once an epoch
    changed = [n for n in range(QUERIES) if len({tuple(epoch[n]) for epoch in epochs}) > 1]
    assert len(changed) > 6 and all(len({epoch[n][0] for epoch in epochs}) == 1 for n in range(QUERIES))
    train_until_killed(hit, 3)
    train_loop(hit, Alone(), CPU)
    assert seen == steps  # each step once: it died before it read anything
    assert all(torch.equal(weights(calm)[n], weights(hit)[n]) for n in weights(calm))


def test_epochs_follow_the_order_of_examples() -> None:
    for examples, size in ((10, 4), (7, 7), (3, 8)):
        for step in range(8):
            places = np.arange(step * size, (step + 1) * size)
            assert epochs_of(step, examples=examples, size=size).tolist() == (places // examples).tolist()
            numbers = batch_of(step, seed=1, examples=examples, size=size)
            pairs = list(zip(numbers.tolist(), epochs_of(step, examples=examples, size=size).tolist(), strict=True))
            assert len(set(pairs)) == size  # an example is never twice in an epoch


# -- the word level ---------------------------------------------------------------------------------------


def test_the_word_level_reads_positives_and_the_best_scored_surviving_negatives() -> None:
    flags = [[POSITIVE, SUSPECT, 0, 0, 0], [0, POSITIVE, POSITIVE, DARK, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    nan = math.nan
    teacher = [[9.0, 8.0, 1.0, 3.0, 2.0], [1.0, nan, 5.0, 7.0, 2.0], [1.0, 4.0, nan, 2.0, 3.0], [nan] * 5]
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2, 4] = False
    nothing = torch.zeros(4, 5, dtype=torch.int64)
    batch = ListBatch(
        rows={}, index_QN=nothing, doc_rows_QN=nothing, labels_QN=nothing, teacher_QN=torch.tensor(teacher), mask_QN=mask,
        flags_QN=torch.tensor(flags),
    )  # fmt: skip
    pairs = [tuple(pair) for pair in chosen(batch, 2).tolist()]
    # A query without a label has the teacher's favourite for a positive; one without scores has no pair.
    assert pairs == [(0, 0), (0, 3), (0, 4), (1, 1), (1, 4), (1, 0), (2, 1), (2, 3), (2, 0)]
    assert chosen(batch, 0).tolist() == [[0, 0], [1, 1], [2, 1]]
    assert len(chosen(batch, 99)) == 1 + 3 + 1 + 2 + 1 + 2  # nobody is taken twice


def test_the_word_levels_weight_warms_up(tmp_path: Path) -> None:
    job = make_job(tmp_path, kind="rich", objective=losses_of(Distil()), words=word_teacher(tmp_path, weight=0.8, warmup=0.5))
    found = {u: gradients(job, progress=u) for u in (0.0, 0.25, 0.5, 0.9)}
    full = found[0.5][1]["words"]
    assert full > 1e-3
    assert [found[u][1]["words"] for u in (0.0, 0.25, 0.9)] == pytest.approx([0.0, full / 2, full], rel=1e-6)
    slopes = {u: grads["projection"] for u, (grads, _) in found.items()}
    assert slopes[0.0].eq(0).all() and slopes[0.5].abs().max() > 1e-4
    torch.testing.assert_close(slopes[0.25] * 2, slopes[0.5])
    without, losses = gradients(replace(job, words=None))
    assert "projection" not in without and list(losses) == ["distil"]
    assert_same(without, {n: g for n, g in found[0.0][0].items() if n != "projection"}, 1e-7)


def test_the_word_level_is_learnt(tmp_path: Path) -> None:
    words = word_teacher(tmp_path, weight=1.0, warmup=0.0)
    job = make_job(tmp_path, kind="rich", objective=losses_of(Distil(weight=1e-6)), words=words)
    job = replace(job, config=job.config.model_copy(update={"max_steps": 24, "learning_rate": 1e-2}))
    train_loop(job, Alone(), CPU)
    curve = [row[1] for row in job.out.read_json("curve.json")]
    assert np.mean(curve[-4:]) < 0.7 * np.mean(curve[:4])


@pytest.mark.parametrize("stop", [1, 4])
def test_a_word_level_run_goes_on_with_its_projection_and_leaves_it_behind(tmp_path: Path, stop: int) -> None:
    from sentence_transformers import SentenceTransformer

    def worded(home: Path, **rule: Any) -> Job:
        words = word_teacher(home, **{"weight": 1.0, "warmup": 0.3, **rule})
        return make_job(home, kind="rich", objective=METHODS["md2pr"], words=words, dropout=0.1, save_seconds=0.0)

    calm, hit = worded(tmp_path / "calm"), worded(tmp_path / "hit")
    train_loop(calm, Alone(), CPU)
    train_until_killed(hit, stop)
    begun = load_file(hit.scratch.local(f"checkpoint-{stop:09d}.safetensors"))
    torch.manual_seed(99)
    train_loop(hit, Alone(), CPU)
    assert all(torch.equal(weights(calm)[n], weights(hit)[n]) for n in weights(calm))
    assert calm.out.read_json("curve.json") == hit.out.read_json("curve.json")
    # The last checkpoint is that after step 5 of 6: weights and moments of the projection too, the same in both.
    last, other = (load_file(job.scratch.local("checkpoint-000000005.safetensors")) for job in (calm, hit))
    name = "projection.weight"
    assert {f"model.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq", f"optimizer.{name}.step"} <= set(last)
    assert all(torch.equal(last[n], other[n]) for n in last) and last.keys() == other.keys()
    assert not torch.equal(last[f"model.{name}"], begun[f"model.{name}"])
    # What is saved is the start's own tensors, and loads as any model does.
    begin = load_file(calm.start.local("model.safetensors"))
    assert {n: t.shape for n, t in weights(calm).items()} == {n: t.shape for n, t in begin.items() if "pooler" not in n}
    assert SentenceTransformer(str(calm.out.local("model")), device="cpu").encode(["wave"]).shape == (1, 32)
    # And it did something: without the word level training ends elsewhere.
    plain = make_job(tmp_path / "plain", kind="rich", objective=METHODS["md2pr"], dropout=0.1)
    train_loop(plain, Alone(), CPU)
    assert any(not torch.equal(weights(plain)[n], weights(calm)[n]) for n in weights(calm))


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
    "vectors": {"objective": SameVectors(), "kind": "texts"},
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant trained by two processes over gloo."""
    import pickle

    home = tmp_path_factory.mktemp("ranks")
    jobs = [make_job(home / name, **values) for name, values in VARIANTS.items()]
    once = {(name, n): method_job(home / "methods", name, per_device=n) for name in METHODS for n in (None, 1)}
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
@pytest.mark.parametrize("name", METHODS)
def test_two_workers_have_the_gradients_of_one(two_ranks: Path, name: str, per_device: int | None) -> None:
    import pickle

    alone, losses = gradients(method_job(two_ranks / "methods", name), progress=0.3)
    for rank in range(2):
        both, found = pickle.loads((two_ranks / f"rank-{rank}.pkl").read_bytes())["slopes"][name, per_device]
        assert_same(both, alone, 1e-5)
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
