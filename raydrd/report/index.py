"""What the report says of the index that is shipped: one sentence, from report.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def index_sentence(about: Mapping[str, Any] | None) -> str:
    """`index IVF256,PQ48, 1.2 MB: recall@10 0.934 ...`; empty where a report has no word of its index."""
    if not about:
        return ""
    size = float(about["size_mb"])
    head = f"index {about['factory']}, {size:,.0f} MB" if size >= 10 else f"index {about['factory']}, {size:.1f} MB"
    if about.get("exact"):
        return f"{head}: exact"
    recalls = " and ".join(f"recall@{n} {about[f'recall@{n}']:.3f}" for n in (10, 100) if f"recall@{n}" in about)
    looks = ", ".join(f"{name} {about[name]}" for name in ("nprobe", "efSearch") if name in about)
    speeds = f"{_rate(about['per_second'])} queries/s, exact search {_rate(about['exact_per_second'])}, one thread"
    return f"{head}: {recalls} of exact search{f' ({looks})' if looks else ''}; {speeds}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
