"""The curve of sizes for the report: what each form of the student's vectors costs against the whole of them in float32."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raydrd.setting import Setting
from raydrd.spine.store import Artifact
from raydrd.statistics import paired_bootstrap


def sizes_told(measured: Artifact, cfg: Setting) -> dict[str, Any]:
    """`sizes` of report.json, from the artifact of `measure_sizes`.

    Rows fall by width: dim, type, bytes a passage, ms a query, means by metric, `change` (for the first metric and every
    recall: its mean difference to the whole float32 vectors, with a paired bootstrap interval), and whether it ships.
    """
    values = measured.folder.read_table("by_query.parquet")
    rows = [dict(one) for one in measured.metrics["sizes"]]
    whole = max(one["dim"] for one in rows)
    metrics = list(rows[0]["means"])
    compared = [name for number, name in enumerate(metrics) if number == 0 or name.startswith("R@")]
    dim, settings = cfg.vectors.dim or whole, cfg.evaluation
    base = _of(values, whole, "float32")
    for one in rows:
        own = _of(values, one["dim"], one["type"])
        one["change"] = {
            name: [
                one["means"][name] - rows[0]["means"][name],
                *paired_bootstrap(own[name].to_numpy(), base[name].to_numpy(), seed=settings.seed, samples=settings.samples),
            ]
            for name in compared
        }
        one["ships"] = (one["dim"], one["type"]) == (dim, cfg.vectors.type) and cfg.index == "Flat"
    return {
        "rows": rows,
        "metrics": metrics,
        "trained": list(cfg.student.dims) if cfg.student.dims else [whole],
        "queries": int(measured.metrics["rows"]),
        "passages": int(measured.metrics["passages"]),
    }


def _of(values: pa.Table, dim: int, type_: str) -> pa.Table:
    return values.filter(pc.and_(pc.equal(values["dim"], dim), pc.equal(values["type"], type_)))
