"""What is wrong with the input: every problem with its file, its line and what to write instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raydrd.errors import InputError

Severity = Literal["error", "warning", "note"]
SHOWN = 10  # examples kept of each kind in each file; the rest are counted


@dataclass
class Findings:
    """Problems seen so far: counts of all, the first `SHOWN` of each kind and file.

    `root` is the collection's folder: file names are kept relative to it, and shown below it.
    """

    root: str = ""
    _examples: dict[tuple[Severity, str, str], list[str]] = field(default_factory=dict)
    _counts: dict[tuple[Severity, str, str], int] = field(default_factory=dict)

    def _add(self, severity: Severity, kind: str, file: str, line: int | None, what: str, instead: str) -> None:
        key = (severity, kind, file)
        self._counts[key] = self._counts.get(key, 0) + 1
        examples = self._examples.setdefault(key, [])
        if len(examples) < SHOWN:
            place = file if line is None else f"{file}:{line}"
            examples.append(f"{place}: {what}; {instead}" if instead else f"{place}: {what}")

    def error(self, kind: str, file: str, line: int | None, what: str, instead: str) -> None:
        """The input cannot be used as it is."""
        self._add("error", kind, file, line, what, instead)

    def warning(self, kind: str, file: str, line: int | None, what: str, instead: str) -> None:
        """The input can be used, and the user should know."""
        self._add("warning", kind, file, line, what, instead)

    def note(self, kind: str, file: str, line: int | None, what: str, instead: str = "") -> None:
        """Nothing is wrong; something was decided or left out."""
        self._add("note", kind, file, line, what, instead)

    def count(self, severity: Severity, kind: str | None = None) -> int:
        """How many problems of a severity, or of one kind of it."""
        return sum(n for (s, k, _), n in self._counts.items() if s == severity and kind in (None, k))

    def lines(self, severity: Severity = "warning", *, relative: bool = False) -> list[str]:
        """One line a kept problem, `file:line: what; instead`, then how many more there are like it.

        `relative` leaves the collection's folder out, for records that should not depend on where it lay.
        """
        prefix = f"{self.root}/" if self.root and not relative else ""
        result = []
        for key, examples in self._examples.items():
            if key[0] != severity:
                continue
            # Absolute names and URIs (files outside the collection) already say where they are.
            here = "" if key[2].startswith("/") or "://" in key[2] else prefix
            result += [here + example for example in examples]
            if self._counts[key] > len(examples):
                result.append(f"{here}{key[2]}: ... and {self._counts[key] - len(examples)} more like this ({key[1]})")
        return result

    def raise_if_errors(self) -> None:
        """Stop if there are errors.

        Raises:
            InputError: its message is one line an error.
        """
        lines = self.lines("error")
        if lines:
            raise InputError("\n".join(lines))
