"""The probe: each kind of work of a run done once on a sample of the user's rows, by the workers that a run uses.

What is dear (encoders, rerankers, trainings) gets a slice of the budget each: warmed up, then timed for as many rows as
the slice allows. What it did not get to is filled in with drawn numbers, so that the stages behind it have something to
read. Those are cheap: they run whole on the sample, once to load their libraries and once timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.models.devices import NO_ROOM
from raydrd.planning.machine import PeakMemory
from raydrd.planning.sample import view
from raydrd.planning.sizes import TRAININGS, duels_each, list_width
from raydrd.planning.timing import Rate, kept_bytes, quiet, ranked, timed
from raydrd.planning.walk import DATA, MODELS, Asked
from raydrd.spine.cluster import Cluster, set_threads
from raydrd.spine.parts import part_name
from raydrd.spine.ragged import ragged_table
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store, identify
from raydrd.spine.tables import PAIRS, vectors
from raydrd.stages.adopt import model_folder
from raydrd.stages.search import search
from raydrd.stages.shards import chain_of, note_counts, parts_of

MOST_UPDATES = 150  # of a timed training
SEARCHED = (128, 16_384)  # queries and passages of the timed search: a sample's own are too few to tell


class Unmeasured(Exception):
    """The sample does not lead to this stage; the message says why."""


class Probe:
    """Rates by kind of work, and the sample's own results, made as they are asked for."""

    def __init__(
        self, asked: dict[str, Asked], sample: Artifact, scratch: Folder, resources: Resources, *, seconds: float, threads: int
    ) -> None:
        alone = resources.model_copy(update={"ray": "off", "train_workers": 0})
        self.asked, self.sample, self.seconds = asked, sample, seconds
        self.resources, self.threads = alone, threads
        self.first, self.again = (Store(scratch / name, Cluster(alone)) for name in ("first", "again"))
        self.rates: dict[Any, Rate] = {}
        self.problems: dict[str, str] = {}  # stage id -> why it was not measured
        self.made: dict[str, Artifact] = {}  # stage id -> the sample's result
        self.kinds = {self.kind(step) for step in asked.values() if not step.held and step.name in _DEAR}

    @property
    def slice(self) -> float:
        """Seconds for each dear kind of work."""
        return self.seconds / max(1, len(self.kinds))

    # -- what is asked ------------------------------------------------------------------------------

    def rate(self, step: Asked) -> Rate | None:
        """What a stage costs; None where the sample did not lead to it (`problems` says why)."""
        self.shadow(step.made)
        return self.rates.get(self.kind(step))

    def shadow(self, artifact: Artifact) -> Artifact | None:
        """The same result made from the sample; None where it could not be made."""
        try:
            return self._shadow(artifact)
        except Unmeasured:
            return None

    def kind(self, step: Asked) -> tuple[Any, ...]:
        """Stages of one kind cost the same a unit: the same model on the same form of input."""
        get = step.inputs.get
        match step.name:
            case "embed" | "embed_tokens" | "embed_pooled":  # of a hybrid the same forward pass gives both
                return ("embed", self.root(step.inputs["model"]).id, step.inputs["role"])
            case "score_pairs" | "score_duels" | "score_lists":
                return (step.name, self._rooted(str(step.inputs["teacher"].where)), get("kind"), step.inputs["max_length"])
            case "train" | "train_reranker" | "imitate":
                config, lists, objective = step.inputs["config"], get("lists"), step.inputs["objective"]
                words = get("words") is not None
                inner = getattr(objective, "objective", objective)  # of several widths at once
                terms = tuple(one.kind for one in getattr(inner, "terms", (inner,))) + tuple(getattr(objective, "dims", ()))
                shape = self.asked[lists.id].inputs if lists is not None and lists.id in self.asked else {}
                rule = str(shape.get("rule")) + str(shape.get("dark_rule"))
                size = (config.train_batch_size, config.train_group_size, config.gradient_checkpointing)
                return (step.name, self.root(step.inputs["start"]).id, *size, terms, words, get("duels"), rule)
            case "search":
                made = self.asked[step.inputs["passages"].id].inputs  # by an encoder, or cut to a width
                return ("search", made.get("dim") or self.root(made["model"]).metrics["width"])
            case "search_index":
                return ("search_index", self.asked[step.inputs["index"].id].inputs["factory"])
        return (step.name,)

    def root(self, model: Artifact) -> Artifact:
        """The model that a trained one began as: it has the same shape."""
        step = self.asked.get(model.id)
        return model if step is None or step.held or "start" not in step.inputs else self.root(step.inputs["start"])

    def _models(self) -> list[Artifact]:
        return [step.made for step in self.asked.values() if step.name in TRAININGS]

    def _rooted(self, where: str) -> str:
        """A trained reranker's folder as that of the one it began as."""
        found = next((m for m in self._models() if where.startswith(str(m.home))), None)
        return str(model_folder(self.root(found))) if found is not None else where

    # -- the sample's results ------------------------------------------------------------------------

    def _shadow(self, artifact: Artifact) -> Artifact:
        if artifact.id in self.problems:
            raise Unmeasured(self.problems[artifact.id])
        if artifact.id not in self.made:
            try:
                self.made[artifact.id] = self._make(self.asked[artifact.id])
            except Unmeasured as error:
                self.problems[artifact.id] = str(error)
                raise
        return self.made[artifact.id]

    def _make(self, step: Asked) -> Artifact:
        if step.name in DATA:
            return self.sample
        if step.name in MODELS or (step.name in TRAININGS and step.held):
            return step.made
        if step.name in ("take_run", "take_scores"):
            self.rates[self.kind(step)] = Rate(2e-6)
            return view(self.sample, "candidates/train" if step.name == "take_run" else "scored/train")
        inputs = {name: self._translated(value) for name, value in step.inputs.items()}
        id_, _ = identify(step.function, inputs)
        if id_ not in self.made:
            dear = _DEAR.get(step.name)
            try:
                with quiet():
                    self.made[id_] = dear(self, step, inputs, id_) if dear else self._plain(step, inputs)
            except Unmeasured:
                raise
            except InputError as error:
                raise Unmeasured(str(error)) from error
            except RuntimeError as error:
                raise _no_room(step, error) from error
            except Exception as error:  # a sample may be too small for a rule; the run's own rows may be enough
                raise Unmeasured(f"{type(error).__name__}: {error}") from error
        return self.made[id_]

    def _translated(self, value: Any) -> Any:
        """An input with the sample's results in place of the run's."""
        match value:
            case Artifact():
                return self._view_of(value)
            case dict():
                return {name: self._translated(one) for name, one in value.items()}
            case list() | tuple():
                return [self._translated(one) for one in value]
        if hasattr(value, "where") and isinstance(value.where, tuple):  # tokenizer of a model that is not there yet
            folder, subfolder = value.where
            return replace(value, where=(Folder(self._rooted(str(folder))), subfolder))
        if hasattr(value, "where") and isinstance(value.where, Folder):
            return replace(value, where=Folder(self._rooted(str(value.where))))
        return value

    def _view_of(self, artifact: Artifact) -> Artifact:
        """The sample's result; of written dark examples, where the run reads them as candidates, that table alone."""
        made, step = self._shadow(artifact), self.asked[artifact.id]
        if step.name != "write_dark" or artifact.manifest["files"] == step.made.manifest["files"]:
            return made
        files = {name: size for name, size in made.manifest["files"].items() if name.startswith("shards/candidates/")}
        return replace(made, manifest={**made.manifest, "files": files})

    # -- cheap stages, whole -------------------------------------------------------------------------

    def _plain(self, step: Asked, inputs: dict[str, Any]) -> Artifact:
        made = self.first.run(step.function, step.label, **inputs)
        kind = self.kind(step)
        if kind not in self.rates:
            cold = float(made.manifest["seconds"])
            rows = max(1, int(made.metrics["rows"]))
            if step.name in ("verify_export", "verify_late_export"):
                self.rates[kind] = Rate(cold)
                return made
            began = time.monotonic()
            self.again.run(step.function, step.label, **inputs)
            warm = min(cold, time.monotonic() - began)
            size = kept_bytes(made) / rows
            if step.name == "bm25_search":
                self.rates[kind] = Rate(ranked(), row_seconds=warm / rows, row_bytes=size, once=cold - warm)
                return made
            depth = step.made.metrics.get("depth") if step.name not in _BY_ROW else None
            passages = float(self.sample.metrics["passages"])
            units = rows * min(float(depth or 1), passages)
            if step.name in _EXHAUSTIVE:
                units = rows * passages * (int(inputs["queries"].metrics["width"]) if step.name == "search_index" else 1)
            self.rates[kind] = Rate(warm / units, row_bytes=size, once=cold - warm, measured=units)
        return made

    # -- dear stages, a slice each ---------------------------------------------------------------------

    def _embed(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        from raydrd.stages.embed import Embedder

        parts, kind, model = parts_of(inputs["tokens"]), self.kind(step), inputs["model"]
        width = int(model.metrics["width"])
        found = np.random.default_rng(0).normal(size=(parts.rows, width)).astype(np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)

        def build() -> Callable[[int, int], Any]:
            worker = Embedder(
                model=model_folder(model), role=inputs["role"], tokens=parts, out=self.first.root,
                precision=inputs["precision"], storage="float16", tokens_per_batch=self.resources.tokens_per_batch,
            )  # fmt: skip

            def run(lo: int, hi: int) -> None:
                found[order[lo:hi]] = worker.encode(order[lo:hi])

            return run

        order: NDArray[np.int64] = np.random.default_rng(1).permutation(parts.rows)
        if kind not in self.rates:
            self.rates[kind] = replace(
                timed(build, parts.rows, seconds=self.slice, threads=self.threads), row_bytes=2.0 * width
            )
        column = pa.FixedSizeListArray.from_arrays(pa.array(found.astype(np.float16).ravel()), width)
        table_ = pa.table([column], schema=vectors(width, "float16"))
        return self._written("embed", id_, "arrow", table_, {"width": width})

    def _embed_late(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        """As `_embed`, by an encoder that gives one vector a token, or one of each kind."""
        from raydrd.stages.late.embed import TokenEmbedder

        parts, kind, model = parts_of(inputs["tokens"]), self.kind(step), inputs["model"]
        pooled = step.name == "embed_pooled"
        order: NDArray[np.int64] = np.random.default_rng(1).permutation(parts.rows)
        worker = TokenEmbedder(
            model=model_folder(model), role=inputs["role"], tokens=parts, out=self.first.root,
            precision=inputs["precision"], storage="float16", tokens_per_batch=self.resources.tokens_per_batch,
            pooled=pooled,
        )  # fmt: skip
        counts = worker.reading.lengths(inputs["role"], worker.tokens.lengths(np.arange(parts.rows)))
        counts = np.ones_like(counts) if pooled else counts
        if kind not in self.rates:
            rate = timed(
                lambda: lambda lo, hi: worker.encode(order[lo:hi]), parts.rows, seconds=self.slice, threads=self.threads
            )
            self.rates[kind] = replace(rate, row_bytes=2.0 * worker.width * float(counts.mean()))
        found = np.random.default_rng(0).normal(size=(int(counts.sum()), worker.width)).astype(np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        if pooled:
            column = pa.FixedSizeListArray.from_arrays(pa.array(found.astype(np.float16).ravel()), worker.width)
            table_ = pa.table([column], schema=vectors(worker.width, "float16"))
            return self._written("embed_pooled", id_, "arrow", table_, {"width": worker.width})
        note_counts(self.first.root / "embed_tokens" / id_ / "shards", part_name(0, parts.rows, "arrow"), tokens=len(found))
        about = {"width": worker.width, "tokens": len(found), "similarity": "maxsim"}
        return self._written("embed_tokens", id_, "arrow", ragged_table(found.astype(np.float16), counts), about)

    def _scorer(self, inputs: dict[str, Any]) -> Any:
        from raydrd.stages.scorers import open_scorer

        return open_scorer(
            inputs.get("kind", "cross_encoder"), inputs["teacher"].where, prompt=inputs.get("prompt"),
            queries=parts_of(inputs["query_tokens"]), passages=chain_of(inputs["passage_tokens"]),
            max_length=inputs["max_length"], precision=inputs["precision"], tokens_per_batch=self.resources.tokens_per_batch,
        )  # fmt: skip

    def _asked_of(self, step: Asked, inputs: dict[str, Any], *rows: NDArray[np.int64]) -> None:
        """Time the teacher on these rows (queries, passages, for a duel the other passages), in a drawn order."""
        kind = self.kind(step)
        if kind in self.rates or not len(rows[0]):
            return
        order = np.random.default_rng(1).permutation(len(rows[0]))

        def build() -> Callable[[int, int], Any]:
            scorer = self._scorer(inputs)
            return lambda lo, hi: scorer.scores(*(one[order[lo:hi]] for one in rows))

        self.rates[kind] = timed(build, len(order), seconds=self.slice, threads=self.threads)

    def _order(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        """One window a query is timed; a list of many passages has one for every `stride` of them."""
        from raydrd.stages.order import Orderer
        from raydrd.stages.score import with_scores

        candidates, kind = _whole(inputs["candidates"]), self.kind(step)
        names = ("prompt", "window", "stride", "max_length", "precision")
        lists = [np.array(docs[: inputs["window"]], dtype=np.int64) for docs in candidates["doc_rows"].to_pylist()]

        def build() -> Callable[[int, int], Any]:
            worker = Orderer(
                candidates=parts_of(inputs["candidates"]), out=self.first.root, model=inputs["teacher"].where,
                queries=parts_of(inputs["query_tokens"]), passages=chain_of(inputs["passage_tokens"]),
                tokens_per_batch=self.resources.tokens_per_batch, **{name: inputs[name] for name in names},
            )  # fmt: skip
            rows = candidates["query_row"].to_numpy()
            return lambda lo, hi: worker.ordered(rows[lo:hi], lists[lo:hi])

        if kind not in self.rates:
            found = timed(build, len(lists), seconds=self.slice, threads=self.threads)
            self.rates[kind] = replace(found, seconds=found.seconds / inputs["stride"])
        drawn = np.zeros(sum(map(len, candidates["doc_rows"].to_pylist())), dtype=np.float32)
        return self._sized(step, self._written("score_lists", id_, "parquet", with_scores(candidates, drawn), {}))

    def _score(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        from raydrd.stages.score import flat, with_scores

        candidates = _whole(inputs["candidates"])
        self._asked_of(step, inputs, *flat(candidates))
        drawn = np.random.default_rng(2).normal(size=len(flat(candidates)[0])).astype(np.float32)
        made = self._written("score_pairs", id_, "parquet", with_scores(candidates, drawn), {})
        return self._sized(step, made)

    def _duels(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        pairs = _whole(inputs["pairs"])
        left, right = (pairs[name].combine_chunks() for name in ("left", "right"))
        counts = left.value_lengths().to_numpy(zero_copy_only=False)
        rows = np.repeat(pairs["query_row"].to_numpy(), counts)
        self._asked_of(step, inputs, rows, left.flatten().to_numpy(), right.flatten().to_numpy())
        drawn = np.random.default_rng(2).uniform(size=len(rows)).astype(np.float32)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        column = pa.ListArray.from_arrays(offsets, pa.array(drawn))
        table_ = pa.table([pairs["query_row"], left, right, column], schema=PAIRS)
        each = duels_each(inputs["pairs"])
        about = {"pairs": round(each * len(counts)), "against": 0.0, "inconsistency": 0.0}
        return self._sized(step, self._written("score_duels", id_, "parquet", table_, about))

    def _sized(self, step: Asked, made: Artifact) -> Artifact:
        kind = self.kind(step)
        if kind in self.rates and not self.rates[kind].row_bytes:
            rows = max(1, int(made.metrics["rows"]))
            self.rates[kind] = replace(self.rates[kind], row_bytes=kept_bytes(made) / rows)
        return made

    def _train(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        """The stage itself for one update, then for more: the difference is updates, the rest is how it begins and ends."""
        start: Artifact = inputs["start"]  # what it would become has the same shape
        kind = self.kind(step)
        if kind in self.rates:
            return start
        lists = inputs.get("lists")
        if lists is not None and not int(lists.metrics["rows"]):
            raise Unmeasured("the list rule drops every query of the sample")
        shape = (*kind[:-1], round(list_width(lists)))  # other rules, lists of the same size: the same work
        if shape not in self.rates:
            self.rates[shape] = self._updates(step, inputs)
        self.rates[kind] = self.rates[shape]
        return start

    def _updates(self, step: Asked, inputs: dict[str, Any]) -> Rate:
        set_threads(self.threads)

        def seconds(updates: int, seed: int) -> float:
            config = inputs["config"].model_copy(update={"max_steps": updates, "num_train_epochs": None, "seed": seed})
            made = self.again.run(step.function, step.label, **{**inputs, "config": config})
            return float(made.manifest["seconds"])

        with PeakMemory() as peak:
            one = seconds(1, seed=0)
            if one < 2 * self.slice:  # it loaded libraries too: once more, unless that is too dear
                one = seconds(1, seed=1)
            more = int(np.clip(2 * self.slice / max(one, 1e-3), 3, 24))
            longer = seconds(1 + more, seed=1)
            while longer < 1.5 * one and more < MOST_UPDATES:  # the updates are lost in what it takes to begin and end
                more *= 4
                longer = seconds(1 + more, seed=1)
        each = max((longer - one) / more, 1e-4)
        return Rate(each, start=max(0.0, one - each), memory=peak.bytes, measured=more)

    def _search(self, step: Asked, inputs: dict[str, Any], id_: str) -> Artifact:
        """The sample is searched for its candidates; the rate is that of a larger search over drawn vectors."""
        kind = self.kind(step)
        if kind not in self.rates:
            width = int(inputs["passages"].metrics["width"])
            draw = np.random.default_rng(3)
            drawn = []
            for name, rows in zip(("queries", "passages"), SEARCHED, strict=True):
                values = draw.normal(size=rows * width).astype(np.float16)
                column = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
                table_ = pa.table([column], schema=vectors(width, "float16"))
                drawn.append(self._written("embed", f"drawn-{name}-{width}", "arrow", table_, {"width": width}))
            k = min(int(inputs["k"]), SEARCHED[1])
            set_threads(self.threads)
            warm = self.first.run(search, "search", queries=drawn[0], passages=drawn[1], k=k)
            again = self.again.run(search, "search", queries=drawn[0], passages=drawn[1], k=k)
            units = float(SEARCHED[0] * SEARCHED[1] * width)
            took = min(float(warm.manifest["seconds"]), float(again.manifest["seconds"]))
            size = kept_bytes(again) / SEARCHED[0]
            self.rates[kind] = Rate(took / units, row_bytes=size, measured=units)
        return self.first.run(step.function, step.label, **inputs)

    def _written(self, stage: str, id_: str, ending: str, table_: pa.Table, metrics: dict[str, Any]) -> Artifact:
        """A drawn result as the stage would leave it."""
        home, name = self.first.root / stage / id_, part_name(0, table_.num_rows, ending)
        shards = home / "shards"
        (shards.write_arrow if ending == "arrow" else shards.write_table)(name, table_)
        about = {"rows": table_.num_rows, "unit": "rows", "depth": None, **metrics}
        files = {f"shards/{name}": shards.files()[name]}
        return Artifact(id_, stage, home, {"attempt": "none", "files": files, "metrics": about})


_EXHAUSTIVE = ("search_index", "search_tokens", "measure_sizes")  # every query looks at every passage
_BY_ROW = ("tokenize", "bm25_index", "build_index", "evaluate")
_DEAR: dict[str, Callable[[Probe, Asked, dict[str, Any], str], Artifact]] = {
    "embed": Probe._embed, **dict.fromkeys(("embed_tokens", "embed_pooled"), Probe._embed_late),
    "score_pairs": Probe._score, "score_duels": Probe._duels, "search": Probe._search,
    "score_lists": Probe._order,
    **dict.fromkeys(TRAININGS, Probe._train),
}  # fmt: skip


def _whole(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(part for _, part in parts_of(artifact).each()).combine_chunks()


def _no_room(step: Asked, error: RuntimeError) -> Exception:
    """What did not fit as the user's mistake, anything else as what was not measured."""
    if type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in NO_ROOM):
        setting = "per_device_train_batch_size=4" if step.name in TRAININGS else "tokens_per_batch=1024"
        return InputError(f"{step.label}: a first batch does not fit the memory of a worker; set resources.{setting}")
    return Unmeasured(f"{type(error).__name__}: {error}")
