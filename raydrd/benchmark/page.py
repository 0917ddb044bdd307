"""The figures as a Markdown section and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from raydrd.benchmark.pool import ACTORS, PLAIN, START
from raydrd.benchmark.sides import THEIRS, TOKENS, Compared
from raydrd.rounds import Rounds
from raydrd.spine.precision import Precision
from raydrd.spine.provenance import provenance

Peaks = dict[Precision, float]


def about(command: str, threads: int, device: str, peaks: Peaks, load: float) -> dict[str, Any]:
    """Where, when and with what; `load` is the machine's load average when the run began."""
    found = provenance()
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": found["hardware"],
        "device": device,
        "threads": threads,
        "load_before": load,
        "git": found["git"],
        "versions": found["versions"],
        "peak_gflops": {name: value / 1e9 for name, value in peaks.items()},
    }


def compared(found: Compared, peaks: Peaks) -> dict[str, Any]:
    """One comparison as plain numbers."""
    sides = {
        name: {
            "seconds": times,
            "per_second": found.rows / found.rounds.median(name),
            "speedup": found.rounds.speedup(name, THEIRS),
            "share_of_peak": None if name == TOKENS else found.share(name, peaks),
            "padding": 1 - found.real_tokens / found.padded_tokens[name] if name in found.padded_tokens else None,
        }
        for name, times in found.rounds.seconds.items()
    }
    return {"rows": found.rows, "tokens": found.real_tokens, "gflop": found.flops / 1e9, "facts": found.facts, "sides": sides}


def staged(found: Rounds, rows: int) -> dict[str, Any]:
    """The Ray stage as plain numbers."""
    return {
        "rows": rows,
        "plain_per_second": rows / found.median(PLAIN),
        "actor_per_second": rows / found.median(ACTORS),
        "actors_over_plain": found.speedup(ACTORS, PLAIN),
        "start_seconds": found.seconds[START],
        "equal": found.results["equal"],
        "seconds": {name: found.seconds[name] for name in (PLAIN, ACTORS)},
    }


def markdown(result: dict[str, Any]) -> str:
    """The section to paste into BENCHMARKS.md."""
    here = result["about"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    peaks = ", ".join(f"{name} {value:,.0f} GFLOP/s" for name, value in here["peak_gflops"].items())
    lines = [
        f"## {here['hardware']}, {here['date']}",
        "",
        f"- command: `{here['command']}`",
        f"- {here['threads']} threads on {here['device']}, load average before the run {here['load_before']:.1f}",
        f"- git {here['git']}",
        f"- {versions}",
        f"- matrix peak (plain torch matmul, best of several shapes): {peaks}",
        "",
    ]
    titles = {"embedding": ("Embedding", "texts", "SentenceTransformer.encode"),
              "scoring": ("Scoring", "pairs", "CrossEncoder.predict")}  # fmt: skip
    for name, (title, unit, theirs) in titles.items():
        if name in result:
            lines += _table(result[name], title, unit, theirs)
    if "stage" in result:
        lines += _stage(result["stage"])
    if "quality" in result:
        lines += _quality(result["quality"])
    return "\n".join(lines)


def _table(found: dict[str, Any], title: str, unit: str, theirs: str) -> list[str]:
    lines = [
        f"### {title}: {found['rows']:,} {unit}, {found['tokens']:,} tokens, {found['gflop']:,.0f} GFLOP",
        "",
        f"| | {unit}/s | times {theirs} fp32 | share of matrix peak | padding |",
        "|---|---|---|---|---|",
    ]
    for name, side in found["sides"].items():
        shown = f"`{theirs}` fp32, its defaults" if name == THEIRS else name
        share = "" if side["share_of_peak"] is None else f"{side['share_of_peak']:.0%}"
        padding = "" if side["padding"] is None else f"{side['padding']:.1%}"
        speedup = "" if name == TOKENS else f"{side['speedup']:.2f}"
        lines.append(f"| {shown} | {side['per_second']:,.1f} | {speedup} | {share} | {padding} |")
    facts = "; ".join(
        f"{name} {value:.2g}" if abs(value) < 0.1 else f"{name} {value:.5f}" for name, value in found["facts"].items()
    )
    return [*lines, "", f"{facts[0].upper()}{facts[1:]}.", ""]


def _stage(found: dict[str, Any]) -> list[str]:
    starts = ", ".join(f"{seconds:.1f}" for seconds in found["start_seconds"])
    return [
        f"### The Ray stage: {found['rows']:,} texts, {found['precision']}",
        "",
        "| | texts/s | times the plain loop |",
        "|---|---|---|",
        f"| plain loop in one process | {found['plain_per_second']:,.1f} | 1 |",
        f"| one actor with as many threads, once up | {found['actor_per_second']:,.1f} | {found['actors_over_plain']:.2f} |",
        "",
        f"Start-up apart (Ray in the first round; actor, imports, model, warm-up): {starts} s. "
        f"Vectors equal bit by bit: {'yes' if found['equal'] else 'no'}.",
        "",
    ]


def _quality(found: dict[str, Any]) -> list[str]:
    names = list(found["fp32"])
    return [
        f"### Quality: {found['queries']:,} test queries, {found['passages']:,} passages, exact search",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {p} | " + " | ".join(f"{found[p][name]:.4f}" for name in names) + " |" for p in ("fp32", "bf16")),
        "",
        f"Queries whose nDCG@10 changed: {found['queries whose nDCG@10 changed']}.",
        "",
    ]
