"""Variants of every recipe and config: they can be planned, keep the updates, and reseed the student only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydrd.ablating import ideas, reseeded
from raydrd.config import read_yaml
from raydrd.dry import counts, plan
from raydrd.recipes import RECIPES
from raydrd.session import read_config
from tests.conftest import write_config
from tests.recipes import dry_run, steps

HOME = Path(__file__).resolve().parents[1] / "configs"


def test_only_the_students_own_trainings_get_other_seeds(toy_config: dict[str, Any], tmp_path: Path) -> None:
    values = {name: v for name, v in toy_config.items() if name != "curriculum"}
    train, taught = steps(3), {"train": steps(2, seed=7)}
    bi_encoder = {"kind": "bi_encoder", "model": toy_config["student"]["model"], "train": taught}
    values |= {"recipe": "prod", "warm_up": [{"train": train}], "data_progressive": {"train": {**train, "seed": 50}}}
    values["progress"] = [
        {"teacher": bi_encoder, "train": train, "lists": {"negatives": 7, "pool": 30, "seed": 9}},
        {"train": train},
    ]
    cfg = read_config(write_config(tmp_path / "prod.yaml", values), [])
    other = reseeded(cfg, 3)
    assert [t.seed for t in other.trainings()] == [4683, 4683, 53]
    assert other.warm_up == cfg.warm_up and other.teacher == cfg.teacher and other.evaluation == cfg.evaluation
    assert other.progress[0].teacher == cfg.progress[0].teacher and other.progress[0].lists.seed == 9
    assert reseeded(cfg, 0) == cfg and reseeded(other, -3) == cfg


@pytest.mark.parametrize("recipe", ["cldrd", "adam", "prod", "pairdistill", "md2pr"])
def test_the_configs_of_every_recipe_have_variants_that_can_be_run(recipe: str) -> None:
    cfg = read_config(str(HOME / "beir" / f"{recipe}.yaml"), ["data.path=nowhere/scifact"])
    for one in ideas(cfg):
        assert one.refusal is None and one.changes, one.label
        assert reseeded(one.cfg, 1).trainings() != one.cfg.trainings()
        if all(t.max_steps for t in cfg.trainings()):
            assert sum(t.max_steps for t in one.cfg.trainings()) == sum(t.max_steps for t in cfg.trainings()), one.label


CONFIGS = sorted(path.relative_to(HOME).as_posix() for path in HOME.rglob("*.yaml") if "recipe" in read_yaml(path))


def shipped(name: str) -> Any:
    data = read_yaml(HOME / name)["data"]
    return read_config(str(HOME / name), [] if data["source"] == "pydocs" or "path" in data else ["data.path=nowhere"])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_of_every_config_has_a_plan(name: str) -> None:
    cfg = shipped(name)
    recover = cfg.recover is not None and cfg.student.layers is not None
    for label, variant in RECIPES[cfg.recipe].variants(cfg).items():
        made = plan(variant)
        trained = len(variant.trainings()) + len(cfg.warm_up) + recover
        assert counts(made)["trainings of the student"] == trained, label


@pytest.mark.parametrize("name", ["beir/prod.yaml", "pydocs/prod.yaml", "msmarco/prod.yaml"])
def test_prods_variant_without_progress_mines_the_same(name: str) -> None:
    cfg = shipped(name)
    straight = RECIPES["prod"].variants(cfg)["progressive teachers: straight to the strongest"]
    whole, found = dry_run(cfg)[0], dry_run(straight)[0]
    # The student's own searches differ, as it does; what the bi-encoder finds does not.
    mined = [f"search train (teacher {n})" for n, step in enumerate(cfg.progress, 1) if step.mined_by == "teacher"]
    known = [label for label in mined if label in whole]  # one search is planned once
    assert known and [found[label] for label in known] == [whole[label] for label in known]
