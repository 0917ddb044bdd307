"""What every process of a run really does, noted as it happens, beside the store and without asking it.

Nothing of raydrd imports this. A `sitecustomize.py` on PYTHONPATH does, in the driver and in every process of its Ray,
and the modules named in `PATCHES` are wrapped when they are first imported. One file of JSON lines a process.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "RAYDRD_CHAOS_TALLY"  # where the notes go; without it nothing is wrapped
SPREAD = "RAYDRD_CHAOS_SPREAD"  # set: small inputs go to actors too, so that there are actors to kill
ON_ACTORS = {"Embedder", "Searcher", "PairScorer", "VectorScorer", "Duellist"}  # whose inputs, from so many rows on
FEW_ROWS = 50
HOOK = "from raydrd.chaos.tally import install\n\ninstall()\n"

_now: dict[str, Any] = {"attempt": None}  # the shard that this process works on


def install() -> None:
    """Wrap what is named in `PATCHES` as soon as it is imported."""
    if os.environ.get(FOLDER):
        sys.meta_path.insert(0, Wrapping())


class Wrapping:
    """An importer that lets the usual one load a module, then wraps parts of it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        patch = PATCHES.get(name)
        spec = PathFinder.find_spec(name, path, target) if patch else None
        if patch is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            patch(module)

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


def note(**what: Any) -> None:
    """One line, written whole before anything else happens: a SIGKILL in the next moment does not lose it."""
    line = json.dumps({"at": time.time(), "pid": os.getpid(), **what})
    with open(Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")


@contextmanager
def noted(what: str, **about: Any) -> Iterator[str]:
    """A `begin` and, if it ends well, an `end` around a piece of work."""
    name = f"{os.getpid()}-{time.time_ns()}"
    note(what=what, phase="begin", name=name, **about)
    yield name
    note(what=what, phase="end", name=name, **about)


# -- what is wrapped ------------------------------------------------------------------------------


def _store(module: Any) -> None:
    make = module.Store._make
    names = inspect.signature(make)

    @functools.wraps(make)
    def making(*args: Any, **more: Any) -> Any:
        given = names.bind(*args, **more).arguments
        with noted("stage", stage=given["function"].__name__, home=given["home"].uri, label=given.get("label", "")):
            return make(*args, **more)

    module.Store._make = making


def _cluster(module: Any) -> None:
    attempt, run_map = module.attempt, module.Cluster.map

    @functools.wraps(attempt)
    def attempting(run: Any, shard: dict[str, Any]) -> dict[str, Any]:
        out = getattr(run, "out", None)
        about = {"worker": type(run).__name__, "out": getattr(out, "uri", ""), "shard": shard["name"]}
        with noted("shard", rows=int(shard.get("rows", 1)), **about) as name:
            _now["attempt"] = name
            result: dict[str, Any] = attempt(run, shard)
        _now["attempt"] = None
        return result

    @functools.wraps(run_map)
    def mapping(self: Any, worker: type, arguments: Any, shards: list[dict[str, Any]], **more: Any) -> Any:
        rows = sum(int(shard.get("rows", 1)) for shard in shards)
        if os.environ.get(SPREAD) and worker.__name__ in ON_ACTORS and rows >= FEW_ROWS:
            more["inline"] = False
        return run_map(self, worker, arguments, shards, **more)

    module.attempt, module.Cluster.map = attempting, mapping


def _train(module: Any) -> None:
    worker = module.worker

    @functools.wraps(worker)
    def working(setup: dict[str, Any]) -> None:
        with noted("training", out=setup["job"].out.uri, alone=bool(setup.get("alone"))):
            worker(setup)

    module.worker = working


def _score(module: Any) -> None:
    for name in ("CrossEncoderScorer", "PromptScorer"):
        _asked(getattr(module, name), "scores")


def _embed(module: Any) -> None:
    _asked(module.Embedder, "encode")


def _asked(kind: Any, method: str) -> None:
    """Note the rows that a model is asked for, each time it is asked, before it answers."""
    ask = getattr(kind, method)

    @functools.wraps(ask)
    def asking(self: Any, *rows: Any) -> Any:
        note(what="asked", model=type(self).__name__, attempt=_now["attempt"], rows=[column.tolist() for column in rows])
        return ask(self, *rows)

    setattr(kind, method, asking)


PATCHES: dict[str, Callable[[Any], None]] = {
    "raydrd.spine.store": _store,
    "raydrd.spine.cluster": _cluster,
    "raydrd.stages.train": _train,
    "raydrd.stages.scorers": _score,
    "raydrd.stages.embed": _embed,
}
