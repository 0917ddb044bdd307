"""Metrics of a run, and of a student by test query."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import retrieve
from raydrd.flow.serve import as_shipped
from raydrd.spine.store import Artifact
from raydrd.stages.evaluate import evaluate
from raydrd.stages.shards import parts_of


def judge(lab: Lab, run: Artifact, data: Artifact, name: str, label: str) -> Artifact:
    metrics = list(lab.cfg.evaluation.metrics)
    return lab.store.run(evaluate, f"evaluate {label}", run=run, data=data, name=name, metrics=metrics)


def values(lab: Lab, student: Artifact, label: str, *, whole: bool = False) -> dict[str, NDArray[np.float64]]:
    """Metrics of a student by test query: float64 [Q] by name, in the order of the config's.

    whole: by all of its vectors, whatever form `vectors` gives those that ship.
    """
    search = retrieve if whole else as_shipped
    run = search(lab, student, lab.data, "queries/test", k=lab.cfg.evaluation.depth, label=label)
    judged = judge(lab, run, lab.data, "queries/test", label)
    table = pa.concat_tables(part for _, part in parts_of(judged).each())
    return {name: table[name].to_numpy().astype(np.float64) for name in table.column_names if name != "query_row"}
