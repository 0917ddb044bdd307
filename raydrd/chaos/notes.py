"""Reading what the processes of a run noted (`raydrd.chaos.tally`): who is at work, and what was computed more than once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Notes:
    """All notes so far, read on as they grow. A half-written last line waits for its end."""

    folder: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    open: dict[str, dict[str, Any]] = field(default_factory=dict)  # begun and not ended, by name
    _read: dict[Path, int] = field(default_factory=dict)

    def look(self) -> Notes:
        """Read what is new."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as stream:
                stream.seek(self._read.get(path, 0))
                new = stream.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in map(json.loads, whole.splitlines()):
                self.lines.append(line)
                if line.get("phase") == "begin":
                    self.open[line["name"]] = line
                elif line.get("phase") == "end":
                    self.open.pop(line["name"], None)
        return self

    def stage(self, pid: int) -> str:
        """The stage that this driver is in."""
        begun = [line for line in self.open.values() if line["what"] == "stage" and line["pid"] == pid]
        if begun:
            return str(begun[-1]["label"] or begun[-1]["stage"])
        return "between stages" if any(line["pid"] == pid for line in self.lines) else "starting"

    def began(self, pid: int) -> bool:
        """This driver has begun to make something."""
        return any(line["pid"] == pid and line["what"] == "stage" for line in self.lines)

    def busy(self, kind: str, alive: list[int]) -> list[int]:
        """Processes of Ray, of those `alive`, that work for the stage under way: on shards, a training, or either (`node`).

        Those that have such work in their hands; where there are none, those between two shards.
        """
        wanted = {"actor": ("shard",), "worker": ("training",), "node": ("shard", "training")}[kind]
        drivers = {line["pid"] for line in self.lines if line["what"] == "stage"}
        homes = tuple(f"{line['home']}/" for line in self.open.values() if line["what"] == "stage")
        there = {*alive} - drivers
        at_work = {line["pid"] for line in self.open.values() if line["what"] in wanted} & there
        between = {line["pid"] for line in self.lines if line["what"] in wanted and line["out"].startswith(homes)} & there
        return sorted(at_work or between)


@dataclass(frozen=True)
class Repeats:
    """Work of a model that was done more than once: `asked` rows or pairs in all, `again` beyond the first time.

    wrong: those that were asked again after the shard that holds them had been finished.
    """

    asked: int
    again: int
    wrong: int


def repeats(notes: Notes, model: str) -> Repeats:
    """What models of this class name (`CrossEncoderScorer`, `Embedder` ...) were asked, pair by pair or text by text."""
    begun = {line["name"]: line for line in notes.lines if line.get("phase") == "begin" and line["what"] == "shard"}
    ended = {line["name"]: line["at"] for line in notes.lines if line.get("phase") == "end" and line["what"] == "shard"}
    finished: dict[tuple[Any, ...], float] = {}
    asked = again = wrong = 0
    for line in sorted((one for one in notes.lines if one["what"] == "asked" and one["model"] == model), key=_at):
        if line["attempt"] not in begun:
            continue  # probes outside of a shard: what verifies an export
        home, end = begun[line["attempt"]]["out"], ended.get(line["attempt"], math.inf)
        for item in _items(line, home):
            asked += 1
            if item in finished:
                again += 1
                wrong += finished[item] < line["at"]
            finished[item] = min(end, finished.get(item, math.inf))
    return Repeats(asked, again, wrong)


def models(notes: Notes) -> list[str]:
    """Class names of the models that were asked for anything inside a shard."""
    return sorted({line["model"] for line in notes.lines if line["what"] == "asked" and line["attempt"]})


def _items(line: dict[str, Any], home: str) -> Iterator[tuple[Any, ...]]:
    for row in zip(*line["rows"], strict=True):
        yield (home, *row)


def _at(line: dict[str, Any]) -> float:
    return float(line["at"])
