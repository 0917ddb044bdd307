"""The terminal's final table: plain text, the same with and without a terminal, under 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydrd.report import method, sizes, summary
from raydrd.report.index import index_sentence

_PLAIN = str.maketrans({"−": "-", "–": "-", "’": "'", "\u00a0": " "})


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def final_table(report: Mapping[str, Any]) -> str:
    """The four systems, what changed and how sure that is, then what warned. ASCII only, no trailing newline.

    Args:
        report: the content of report.json; missing parts are left out, numbers that are null print as `-`.
    """
    names = summary.metrics(report)
    head = ["", *names, "passages/s", "MB"]
    body = [[row.label, *(row.cells[name] for name in names), row.speed, row.size] for row in summary.rows(report)]
    lines = _aligned([head, *body])
    rule = "-" * max(len(line) for line in lines)
    lines = [lines[0], rule, *lines[1:], rule]

    main = names[0]
    made = [c for c in report.get("comparisons") or [] if c["a"] == "student" and c["metric"] == main]
    order = ["student_before", "teacher"]
    made.sort(key=lambda c: order.index(c["b"]) if c["b"] in order else len(order))
    if made:
        on = f", {report['queries']:,} test queries" if report.get("queries") else ""
        lines.append(f"{main}, difference [95 % interval], paired randomisation test{on}:")
        width = max(len(summary.against(c)) for c in made)
        lines += [f"  {summary.against(c).ljust(width)}  {summary.difference(c)}" for c in made]
    if share := summary.share_sentence(report):
        lines.append(share)
    if told := index_sentence(report.get("index")):
        lines.append(told)
    if found := sizes.terminal(report.get("sizes")):
        lines += ["", *_aligned(found)]
    lines += method.terminal_lines(report)
    text = "\n".join(lines).translate(_PLAIN)
    return text.encode("ascii", errors="replace").decode()  # a name of a metric, a teacher or a stage may hold anything
