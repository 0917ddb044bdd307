"""What the report says of the index that is shipped: one sentence, from report.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def index_sentence(about: Mapping[str, Any] | None) -> str:
    """`index IVF256,PQ48, 1.2 MB: recall@10 0.934 ...`; empty where a report has no word of its index."""
    if not about:
        return ""
    size = float(about["size_mb"])
    if "tokens_each" in about:
        return _late(about)
    head = f"index {about['factory']}{_form(about)}, " + (f"{size:,.0f} MB" if size >= 10 else f"{size:.1f} MB")
    if about.get("type", "float32") != "float32":
        return f"{head}: the results are its own"
    if about.get("exact"):
        return f"{head}: exact"
    recalls = " and ".join(f"recall@{n} {about[f'recall@{n}']:.3f}" for n in (10, 100) if f"recall@{n}" in about)
    looks = ", ".join(f"{name} {about[name]}" for name in ("nprobe", "efSearch") if name in about)
    speeds = f"{_rate(about['per_second'])} queries/s, exact search {_rate(about['exact_per_second'])}, one thread"
    return f"{head}: {recalls} of exact search{f' ({looks})' if looks else ''}; {speeds}"


def _late(about: Mapping[str, Any]) -> str:
    """`index MaxSim, 110.2 vectors of 64 numbers a passage (2bit), 1,990 bytes a passage, 9.8 MB: ...`."""
    size = float(about["size_mb"])
    head = f"index MaxSim, {about['tokens_each']:,g} vectors of {about['dim']} numbers a passage ({about['type']}), "
    head += f"{about['bytes']:,.0f} bytes a passage, " + (f"{size:,.0f} MB" if size >= 10 else f"{size:.1f} MB")
    speed = f"{_rate(about['per_second'])} queries/s, one thread"
    if about["exact"]:
        return f"{head}: exact; {speed}"
    found = {"tokens": "tokens near the query's", "pooled": "pooled vectors"}.get(about["candidates"])
    by = f" over the {about['depth']:,} that {found} find ({about['finding']})" if found else ""
    recalls = " and ".join(f"recall@{n} {about[f'recall@{n}']:.3f}" for n in (10, 100) if f"recall@{n}" in about)
    return f"{head}{by}: {recalls} of exact MaxSim; {speed}, exact {_rate(about['exact_per_second'])}"


def _form(about: Mapping[str, Any]) -> str:
    """` (int8), 96 of 384 dimensions, 96 bytes a passage`; empty where vectors ship as the encoder gives them."""
    if "bytes" not in about:
        return ""
    kind = f" ({about['type']})" if about["type"] != "float32" else ""
    whole = f" of {about['of']}" if about["dim"] != about["of"] else ""
    size = f", {about['bytes']:,g} bytes a passage" if about["bytes"] is not None else ""
    return f"{kind}, {about['dim']}{whole} dimensions{size}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
