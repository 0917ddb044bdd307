"""Small training jobs over random tokens, and the gradients and weights that tests compare."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.objectives import Contrastive, Distil, Losses, MarginMSE, Ordered, Pairwise
from raydrd.methods.pacing import SelfPaced
from raydrd.methods.wordmaps import WordMaps
from raydrd.spine.parts import Chain, Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import LISTS, TOKENS, vectors
from raydrd.training import checkpoint
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.loop import train_loop
from raydrd.training.plan import TrainConfig
from raydrd.training.sources import ListExamples, TextExamples
from raydrd.training.step import Step
from raydrd.training.texts import Texts
from raydrd.training.words import Words, WordTeacher
from tests.worlds import sharpen, tiny_cross_encoder, tiny_encoder

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
        sharpen(home / "reader")  # as drawn, its attention is all but even
    return WordTeacher(rule=WordMaps(projection=8, **rule), model=Folder.of(home / "reader"), seed=7)


def gradients(
    job: Job, *, seed: int = 0, progress: float = 0.0, comm: Any = None
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and losses of the first step, by the loop's own parts; with `comm` those of all ranks together."""
    from raydrd.models.late import load_student
    from raydrd.models.latelayout import read_student
    from raydrd.spine.parts import TokenReader

    path = job.start.local_folder()
    layout, late = read_student(path)
    model = load_student(path).train()
    if job.config.gradient_checkpointing:
        model.passage.backbone.activation_checkpointing_enable({"use_reentrant": False})
    source = job.examples.open()
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}
    texts = Texts(path, layout, readers, job.tokens_per_batch or 4096, 0, late)
    named, words = dict(model.named_parameters()), None
    if job.words is not None:
        words = Words(
            job.words, model=model, special=texts.special, layout=layout, tokens=readers, precision="fp32", device=CPU,
            reading=texts.reading,
        )  # fmt: skip
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
