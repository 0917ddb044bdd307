"""Seconds, memory and bytes of every stage: units of work times the measured rate, over the workers there are.

    here      in this process:      start + units x seconds a unit
    actors    on a pool of w:       pool + start + shards' turns x units of a shard x seconds a unit
    training  on n workers:         begin + start + updates x seconds an update / n

`start` is measured (a model loaded), `pool` and `begin` are constants: what Ray takes for processes and their imports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from raydrd.planning.machine import Machine
from raydrd.planning.probe import Probe
from raydrd.planning.sizes import TRAININGS, Sizes, list_width, unit_of
from raydrd.planning.timing import Rate
from raydrd.planning.walk import DATA, MODELS, Asked
from raydrd.setting import Setting
from raydrd.stages.cutting import FEW_ROWS as FEW_CUT
from raydrd.stages.embed import FEW_TEXTS as FEW_EMBEDDED
from raydrd.stages.index import FEW_ROWS as FEW_INDEXED
from raydrd.stages.indexfile import FACTORIES
from raydrd.stages.late.embed import GPU_ROWS
from raydrd.stages.search import FEW_DOT_PRODUCTS
from raydrd.stages.tokenize import FEW_TEXTS as FEW_TOKENIZED

# Seconds on two cores: a local Ray started; actors of one stage started, with their imports; a training's workers.
RAY, POOL, TRAINING = 4.0, 6.0, 9.0
FEW_ROWS = 20_000  # most stages without a model do so many rows in this process
TRAINED_BYTES = 25  # a passage of the training lists, in memory
WORD_BYTES = 110  # a word of the corpus while BM25 is built


@dataclass(frozen=True)
class Line:
    """The forecast of one stage; seconds None: it is in the store, or was not measured. Bytes; memory is one worker's peak."""

    id: str
    name: str
    label: str
    aside: str
    rows: int
    unit: str
    reused: bool
    seconds: float | None
    where: str
    workers: int
    memory: int
    disk: int
    rate: float | None
    rate_unit: str
    problem: str = ""


def seconds_of(work: float, start: float, *, where: str, workers: int, shards: int) -> float:
    """Seconds of a stage whose work one worker does in `work` seconds, after `start` seconds of getting ready."""
    if where == "here":
        return start + work
    if where == "training":
        return TRAINING + start + work / workers
    # Of few shards the last turn leaves workers idle: whole turns count.
    turns = math.ceil(shards / workers) * workers / shards if shards < 8 * workers else 1.0
    return POOL + start + work * turns / workers


@dataclass(frozen=True)
class Costs:
    """What turns sizes into seconds: the run's setting, the machine, the sizes, the probe."""

    cfg: Setting
    machine: Machine
    sizes: Sizes
    probe: Probe
    uses_ray: bool
    words: float = 60.0  # a passage

    def line(self, step: Asked) -> Line:
        rows = self.sizes.rows(step.made) if step.name not in DATA else int(step.made.metrics["rows"])
        told = str(step.made.metrics["unit"]) if step.held or step.name in DATA + MODELS else _ROWS.get(step.name, "queries")
        unit = "steps" if step.name in TRAININGS else told
        about: dict[str, Any] = {
            "id": step.made.id, "name": step.name, "label": step.label, "aside": step.aside, "rows": rows, "unit": unit,
        }  # fmt: skip
        rate = None if step.held or step.name in DATA + MODELS else self.probe.rate(step)
        if rate is None:
            problem = "" if step.held or step.name in DATA + MODELS else self.probe.problems.get(step.made.id, "no rate")
            return Line(
                **about, reused=not problem, seconds=None, where="", workers=0, memory=0, disk=0, rate=None, rate_unit="",
                problem=problem,
            )  # fmt: skip
        where, workers, shards = self._place(step, rows)
        units = self.sizes.units(step)
        return Line(
            **about, reused=False, seconds=self._seconds(step, rate, units, where, workers, shards), where=where,
            workers=workers, memory=self._memory(step, rate, rows), disk=self._disk(step, rate, rows),
            rate=1 / rate.seconds if rate.seconds and unit_of(step.name) else None, rate_unit=unit_of(step.name),
        )  # fmt: skip

    # -- where a stage runs ----------------------------------------------------------------------------

    def _place(self, step: Asked, rows: int) -> tuple[str, int, int]:
        """(here, actors or training; workers; shards). The limits below are those of the stages themselves."""
        resources = self.cfg.resources
        if step.name in TRAININGS:
            most = resources.train_range()[1]
            return ("training", most, 1) if self.uses_ray and most else ("here", 1, 1)
        if not self.uses_ray or self._is_small(step, rows):
            return "here", 1, 1
        gpu = bool(self.machine.gpus)
        shards = 1
        match step.name:
            case "tokenize":
                shards = math.ceil(rows / 50_000)
            case "embed" | "embed_tokens" | "embed_pooled":
                most = 16_384 if step.name == "embed" else GPU_ROWS
                shards = math.ceil(rows / (resources.rows_per_shard or (most if gpu else 2048)))
            case "score_pairs" | "score_duels" | "score_lists":
                size = resources.pairs_per_shard or (65_536 if gpu else 4096)
                shards = math.ceil(self.sizes.units(step) / size)
            case "search" | "bm25_search" | "search_index" | "search_tokens":
                shards = math.ceil(rows / 1024)
            case "bm25_index" | "build_index" | "measure_sizes" | "evaluate" | "learn_threshold":
                shards = 1
            case _:
                shards = math.ceil(rows / FEW_ROWS)
        pool = self.machine.pool(resources, shards, models=step.name in _MODELS)
        if resources.ray not in ("auto", "local") and resources.num_workers:  # a cluster that is not this machine
            return "actors", min(resources.num_workers, shards), shards
        return "actors", pool.size, shards

    def _is_small(self, step: Asked, rows: int) -> bool:
        match step.name:
            case "embed" | "embed_tokens" | "embed_pooled":
                return rows <= FEW_EMBEDDED
            case "tokenize":
                return rows <= FEW_TOKENIZED
            case "score_pairs" | "score_duels":
                return rows <= 32
            case "score_lists":
                return rows <= 8
            case "search" | "search_index":
                return self.sizes.units(step) <= FEW_DOT_PRODUCTS
            case "cut_vectors" | "measure_sizes":
                return self.sizes.passages <= FEW_CUT
            case "bm25_search":
                return self.sizes.units(step) <= 2e8
            case "write_dark":
                return rows <= 2048
            case "build_index":
                return rows <= FEW_INDEXED and step.inputs["factory"] in FACTORIES.values()
            case "verify_export" | "verify_late_export":
                return True
        return rows <= FEW_ROWS

    # -- what it takes -----------------------------------------------------------------------------------

    def _seconds(self, step: Asked, rate: Rate, units: float, where: str, workers: int, shards: int) -> float:
        if step.name == "build_index" and "HNSW" in step.inputs["factory"] and rate.measured > 2:
            units *= max(1.0, math.log2(max(2.0, units)) / math.log2(rate.measured))  # each row is searched for among all
        work = units * rate.seconds + self.sizes.rows(step.made) * rate.row_seconds
        return seconds_of(work, rate.start, where=where, workers=workers, shards=shards)

    def _memory(self, step: Asked, rate: Rate, rows: int) -> int:
        """What was seen, and what grows with the rows: indexes and training lists are held whole."""
        held = 0.0
        match step.name:
            case "build_index":
                held = rows * rate.row_bytes
            case "bm25_index":
                held = rows * self.words * WORD_BYTES
            case "train" | "train_reranker":
                lists = self.probe.shadow(step.inputs["lists"])
                held = self.sizes.rows(step.inputs["lists"]) * list_width(lists) * TRAINED_BYTES
        return int(rate.memory + held) if rate.memory or held else 0

    def _disk(self, step: Asked, rate: Rate, rows: int) -> int:
        if step.name in TRAININGS:
            return int(4e6 * float(step.made.metrics.get("size_mb") or 0))  # the model, and a checkpoint with AdamW's moments
        return int(rows * rate.row_bytes)


_MODELS = ("embed", "embed_tokens", "embed_pooled", "score_pairs", "score_duels", "score_lists", "search")
_ROWS = {
    "tokenize": "texts", "embed": "texts", "build_index": "passages", "bm25_index": "passages", "verify_export": "texts",
    "embed_tokens": "texts", "embed_pooled": "texts", "pack_tokens": "texts", "verify_late_export": "texts",
    "assemble": "lists", "anchor": "lists", "learn_threshold": "positives", "take_scores": "queries",
}  # fmt: skip
