"""Toy configs of all recipes, and what their tests ask of a run."""

from __future__ import annotations

import copy
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raydrd import dry
from raydrd.config import Resources, validate
from raydrd.flow.lab import Lab, open_lab
from raydrd.methods.lists import POSITIVE
from raydrd.recipes import RECIPES
from raydrd.session import run
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of
from tests.conftest import TOY_CONFIG, write_config

METRIC = "nDCG@10"
LISTS = {"negatives": 7, "pool": 30, "ranking": "student"}
SCALE = {"score_scale": 20}
MODEL_WORK = {"embed", "score_pairs", "score_vectors", "score_duels", "train", "train_reranker", "imitate"}


def steps(count: int, learning_rate: float = 3.0e-3, **more: Any) -> dict[str, Any]:
    """A training of `count` small steps."""
    return {"learning_rate": learning_rate, "train_batch_size": 8, "max_steps": count, **more}


def settings(toy: Path, recipe: str, **fields: Any) -> dict[str, Any]:
    """The toy world for a recipe: a random student, the oracle as its teacher."""
    shared = {name: TOY_CONFIG[name] for name in ("teacher", "candidates", "evaluation", "precision", "resources")}
    values = copy.deepcopy(shared) | {"recipe": recipe, "data": {"path": str(toy / "data")}}
    values["student"] = {"model": str(toy / "student")}
    values["teacher"]["model"] = str(toy / "teacher")
    return values | copy.deepcopy(fields)


def run_toy(
    home: Path, values: dict[str, Any], *, changes: list[str] | None = None, store: Path | None = None
) -> dict[str, Any]:
    """The report of a run, with `folder`, `store` and `config` beside it."""
    home.mkdir(parents=True, exist_ok=True)
    kept = store or home / "store"
    config = write_config(home / "config.yaml", values)
    report = run(config, changes or [], out=str(home / "run"), store=str(kept))
    return {**report, "folder": home / "run", "store": kept, "config": config}


def run_again(report: dict[str, Any], home: Path) -> dict[str, Any]:
    """The same command again, into another folder."""
    return run(report["config"], [], out=str(home / "again"), store=str(report["store"]))


def made(report: dict[str, Any]) -> list[str]:
    return [stage["label"] for stage in report["stages"] if not stage["reused"]]


def open_store(folder: Path) -> Store:
    return Store(Folder.of(folder), Cluster(Resources(ray="off", train_workers=0)))


def artifact(report: dict[str, Any], label: str) -> Artifact:
    """What the stage with this label made."""
    record = next(s for s in report["stages"] if s["label"] == label)
    return open_store(report["store"]).find(record["name"], record["id"])


def journal(report: dict[str, Any], store: Store) -> list[tuple[str, Artifact]]:
    """Every stage of a run by name, with what it made."""
    return [(s["name"], store.find(s["name"], s["id"])) for s in report["stages"]]


def rows(made: Artifact) -> list[dict[str, Any]]:
    """The rows of an artifact that is one table."""
    return list(pa.concat_tables(part for _, part in parts_of(made).each()).to_pylist())


def fact(report: dict[str, Any], label: str, name: str) -> Any:
    """What a run told about one of its steps."""
    return next(f["values"][name] for f in report["facts"] if f["label"] == label and name in f["values"])


def gain(report: dict[str, Any]) -> float:
    """Of the student over the start, on test."""
    return float(report["systems"]["student"][METRIC] - report["systems"]["student_before"][METRIC])


def assert_learns(report: dict[str, Any], *, by: float) -> dict[str, Any]:
    """The student is surely better than its start, and by so much; the comparison of the two."""
    assert gain(report) > by, gain(report)
    better = next(c for c in report["comparisons"] if (c["b"], c["metric"]) == ("student_before", METRIC))
    assert better["low"] > 0, better
    return dict(better)


def assert_found_again(report: dict[str, Any], home: Path) -> None:
    """The same command again makes nothing and says the same."""
    again = run_again(report, home)
    assert made(again) == []
    assert [s["id"] for s in again["stages"]] == [s["id"] for s in report["stages"]]
    assert again["systems"] == report["systems"]


def open_toy(values: dict[str, Any], store: Path) -> tuple[Any, Lab]:
    """A recipe's config and its lab, for tests that stop before the report."""
    cfg = validate(RECIPES[values["recipe"]].Config, values, "toy")
    return cfg, open_lab(cfg, open_store(store))


def run_recipe(values: dict[str, Any], store: Path) -> tuple[Artifact, Lab]:
    """The student a recipe ends with, and the lab: a run without evaluation on test, or a run folder."""
    cfg, lab = open_toy(values, store)
    return RECIPES[cfg.recipe].run(cfg, lab), lab


def dry_run(cfg: Any) -> tuple[dict[str, str], Lab]:
    """Identities by label of what a recipe would make (the first of a name), and the lab: nothing is read or run."""
    store = dry.DryStore(Folder("dry-run"), Cluster(cfg.resources))
    lab = dry.open_lab(cfg, store)
    RECIPES[cfg.recipe].run(cfg, lab)
    found: dict[str, str] = {}
    for one, made in zip(store.planned, store._seen.values(), strict=True):
        found.setdefault(one.label, made.id)
    return found, lab


def digest(made: Artifact) -> dict[str, str]:
    """Of every file of an artifact."""
    home = Path(made.home.uri)
    return {str(p.relative_to(home)): sha256(p.read_bytes()).hexdigest() for p in sorted(home.rglob("*")) if p.is_file()}


def refusal(capsys: pytest.CaptureFixture[str], home: Path, values: dict[str, Any], *, changes: tuple[str, ...] = ()) -> str:
    """The one line that `raydrd run` refuses a config with, before any model has worked."""
    from raydrd.cli import main

    config = write_config(home / "refused.yaml", values)
    capsys.readouterr()
    assert main(["run", config, *changes, "--out", str(home / "run"), "--store", str(home / "store")]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    done = {p.name for p in (home / "store").iterdir()} if (home / "store").exists() else set()
    assert not done & MODEL_WORK, f"{sorted(done & MODEL_WORK)} ran before the refusal"
    line = err.strip().rpartition("raydrd: ")[2]
    assert "\n" not in line
    return line


def table_rows(made: Artifact, name: str) -> list[dict[str, Any]]:
    """The rows of one of an artifact's tables."""
    parts = table(made, name)
    return list(parts.slice(0, parts.rows).to_pylist())


def inputs(store: Store, made: Artifact, name: str) -> Artifact:
    """What an artifact was made from: the artifact that its stage was given as `name`."""
    stage, _, id_ = made.manifest["inputs"][name]["artifact"].partition("/")
    return store.find(stage, id_)


def retriever(store: Store, made: Artifact) -> Artifact:
    """The model whose search found what this artifact was made of."""
    level = [made]
    while all(one.stage != "search" for one in level):
        below = [
            v["artifact"] for one in level for v in one.manifest["inputs"].values() if isinstance(v, dict) and "artifact" in v
        ]
        level = [store.find(*name.split("/")) for name in dict.fromkeys(below)]
    searched = next(one for one in level if one.stage == "search")
    return inputs(store, inputs(store, searched, "passages"), "model")


def assert_negatives_are_unlabelled(lists: list[dict[str, Any]]) -> None:
    """No passage that the judgements call relevant stands among a list's negatives."""
    for one in lists:
        negatives = {d for d, flag in zip(one["doc_rows"], one["flags"], strict=True) if not flag & POSITIVE}
        assert negatives and not negatives & set(one["relevant"])
        assert len(set(one["doc_rows"])) == len(one["doc_rows"])


def artifact_of(lab: Lab, label: str) -> Artifact:
    """What the stage with this label made in this lab."""
    record = next(r for r in lab.store.journal if r.label == label)
    return lab.store.find(record.name, record.id)
