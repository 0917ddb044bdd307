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
    """`quickstart` from the config's file, `scifact-cldrd` where one config serves many collections; `scifact-cldrd-late` of a
    student with token vectors."""
    kind = {"late_interaction": "-late", "hybrid": "-hybrid"}.get(cfg.student.kind, "")
    if not cfg.data.path:
        return Path(path).stem + kind
    folder = cfg.data.path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return f"{folder or 'data'}-{Path(path).stem}{kind}"


def lasting(option: str, path: str) -> Folder:
    """The folder that an option names.

    Raises:
        InputError: it would lie in a submitted job's copy of the working directory, which goes with the job.
    """
    if "://" not in path and "working_dir_files" in Path(path).absolute().parts:  # Ray's name for these copies
        raise InputError(
            f"{option} {path}: in a submitted job this lies in a copy that is deleted afterwards; write a whole path that all "
            "nodes see, or s3://bucket/prefix"
        )
    return Folder.of(path)


@contextmanager
def opened(cfg: Any, *, out: Folder, store: str | None) -> Iterator[Store]:
    """The store, over a cluster that is stopped in the end; logs of our own Ray are kept in the folder `out`.

    Raises:
        InputError: the store or `out` cannot be there: no such bucket, no access, a file in the folder's place,
            a submitted job's own copy of the working directory.
        StageError: an object store does not answer.
    """
    where = lasting("--store", store or DEFAULT_STORE)
    for folder in (where, out):
        folder.check()
    logs = Path(out.uri) / "logs" if out.is_local else None
    cluster = Cluster(cfg.resources, logs=logs)
    try:
        yield Store(where, cluster)
    finally:
        cluster.stop()


def dry_run(path: str, assignments: list[str]) -> str:
    """What `run` would do, as text; nothing is read but the config.

    Raises:
        InputError: the config is wrong; as `run` would say it.
    """
    from raydrd.dry import plan, render

    return render(plan(read_config(path, assignments)), path)


def plan(
    path: str, assignments: list[str], *, store: str | None, gpus: int | None, price: float | None, seconds: float
) -> tuple[Any, dict[str, Any]]:
    """The config, and the forecast of what `run` would take (`raydrd.planning`), which is kept in the store.

    Raises:
        InputError: config, data or models are wrong; as `run` would say it.
    """
    began = time.monotonic()
    cfg = read_config(path, assignments)
    from raydrd.planning.main import forecast

    with opened(cfg, out=Folder.of(f"runs/{cfg.name}"), store=store) as kept:
        return cfg, forecast(cfg, kept, gpus=gpus, price=price, seconds=seconds, began=began)


def run_until(path: str, assignments: list[str], *, phase: str, out: str | None, store: str | None) -> None:
    """Run a recipe up to the end of a phase (`raydrd.until`), and say what is finished. Nothing is published.

    Raises:
        InputError: config, data or models are wrong; before any work.
        StageError: a stage gave up.
    """
    from raydrd.until import PartStore, run_part, tell

    began = time.monotonic()
    cfg = read_config(path, assignments)
    with opened(cfg, out=Folder.of(out or f"runs/{cfg.name}"), store=store) as kept:
        part = PartStore(kept.root, kept.cluster, until=phase)
        following = run_part(cfg, part)
        tell(part, cfg.name, following, time.monotonic() - began)


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
    folder = lasting("--out", out or f"runs/{cfg.name}")
    with opened(cfg, out=folder, store=store) as kept:
        lab = open_lab(cfg, kept)
        student = RECIPES[cfg.recipe].run(cfg, lab)
        return publish(lab, student, out=folder, began=began)
