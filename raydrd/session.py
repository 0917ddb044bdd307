"""A run from config to report: what `raydrd run` and `jobs/run.py` call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydrd.config import override, read_yaml, validate
from raydrd.errors import InputError
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store

DEFAULT_STORE = ".raydrd"


def read_config(path: str, assignments: list[str]) -> Any:
    """The recipe's config in a YAML file with overrides.

    Raises:
        InputError: whatever is wrong with it, one line each.
    """
    from raydrd.recipes import RECIPES

    values = override(read_yaml(path), assignments)
    recipe = values.get("recipe")
    if recipe is None:
        raise InputError(
            f"{path}: recipe: this field is required; write one of {', '.join(RECIPES)}, or run a file that extends this one"
        )
    if recipe not in RECIPES:
        raise InputError(f"{path}: recipe: {recipe!r} is not one of {', '.join(RECIPES)}")
    cfg = validate(RECIPES[recipe].Config, values, path)
    return cfg if cfg.name else cfg.model_copy(update={"name": _name(cfg, path)})


def _name(cfg: Any, path: str) -> str:
    """`quickstart` from the config's file, `scifact-cldrd` where one config serves many collections."""
    if not cfg.data.path:
        return Path(path).stem
    folder = cfg.data.path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return f"{folder or 'data'}-{Path(path).stem}"


@contextmanager
def opened(cfg: Any, *, out: Folder, store: str | None) -> Iterator[Store]:
    """The store, over a cluster that is stopped in the end; logs of our own Ray are kept in the folder `out`."""
    logs = Path(out.uri) / "logs" if out.is_local else None
    cluster = Cluster(cfg.resources, logs=logs)
    try:
        yield Store(Folder.of(store or DEFAULT_STORE), cluster)
    finally:
        cluster.stop()


def dry_run(path: str, assignments: list[str]) -> str:
    """What `run` would do, as text; nothing is read but the config.

    Raises:
        InputError: the config is wrong; as `run` would say it.
    """
    from raydrd.dry import plan, render

    return render(plan(read_config(path, assignments)), path)


def run(path: str, assignments: list[str], *, out: str | None, store: str | None) -> dict[str, Any]:
    """Run a recipe to its report; what was finished before is taken from the store.

    Raises:
        InputError: config, data or models are wrong; before any work.
        StageError: a stage gave up.
    """
    from raydrd.flow.lab import open_lab
    from raydrd.publish import publish
    from raydrd.recipes import RECIPES

    began = time.monotonic()
    cfg = read_config(path, assignments)
    folder = Folder.of(out or f"runs/{cfg.name}")
    with opened(cfg, out=folder, store=store) as kept:
        lab = open_lab(cfg, kept)
        student = RECIPES[cfg.recipe].run(cfg, lab)
        return publish(lab, student, out=folder, began=began)
