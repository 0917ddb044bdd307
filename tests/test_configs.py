"""Every config of the repository is one that a run would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydrd.config import read_yaml
from raydrd.dry import counts, plan
from raydrd.errors import InputError
from raydrd.recipes import RECIPES
from raydrd.session import read_config

HOME = Path(__file__).resolve().parents[1] / "configs"
# A file without a recipe holds what others extend.
CONFIGS = sorted(path.relative_to(HOME).as_posix() for path in HOME.rglob("*.yaml") if "recipe" in read_yaml(path))


def own_path(name: str) -> list[str]:
    """The override that a config without a folder of its own asks for in its first lines."""
    data = read_yaml(HOME / name)["data"]
    return [] if data["source"] == "pydocs" or "path" in data else ["data.path=anywhere"]


def config(name: str, *assignments: str) -> Any:
    return read_config(str(HOME / name), [*own_path(name), *assignments])


def test_the_list_of_configs_holds_the_known_ones() -> None:
    assert {"quickstart.yaml", "beir/cldrd.yaml", "msmarco/cldrd.yaml"} <= set(CONFIGS)


def test_every_paper_has_a_config_at_its_published_sizes() -> None:
    assert {f"msmarco/{recipe}.yaml" for recipe in RECIPES if recipe != "mix"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_names_its_run(name: str) -> None:
    values = read_yaml(HOME / name)
    cfg = read_config(str(HOME / name), own_path(name))
    assert cfg.recipe == values["recipe"]
    folder = (cfg.data.path or "").rpartition("/")[2]
    own = f"{folder}-{Path(name).stem}" if folder else Path(name).stem
    kind = {"single_vector": "", "late_interaction": "-late", "hybrid": "-hybrid"}[cfg.student.kind]
    assert cfg.name == values.get("name", own + kind)
    assert own_path(name) == [] or cfg.data.path == "anywhere"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_needs_a_folder_says_so_in_its_first_lines(name: str) -> None:
    text = (HOME / name).read_text(encoding="utf-8")
    assert bool(own_path(name)) == ("data.path=" in text)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unknown_key_is_refused_with_its_path(name: str) -> None:
    with pytest.raises(InputError, match=r"student\.layer: unknown field; did you mean 'layers'\?"):
        read_config(str(HOME / name), [*own_path(name), "student.layer=2"])


def test_an_unknown_key_in_a_list_is_refused_with_its_number() -> None:
    with pytest.raises(InputError, match=r"curriculum\.1\.train\.lr: unknown field"):
        read_config(str(HOME / "quickstart.yaml"), ["curriculum.1.train.lr=0.1"])


def test_the_published_sizes_of_cldrd() -> None:
    cfg = config("msmarco/cldrd.yaml")
    shapes = [(step.lists.graded, step.lists.hard, step.lists.rest) for step in cfg.curriculum]
    rates = [(step.train.learning_rate, step.train.num_train_epochs) for step in cfg.curriculum]
    assert shapes == [(5, 12, 13), (10, 10, 10), (30, 0, 0)]
    assert rates == [(7e-6, 4), (3e-6, 2), (3e-6, 2)]
    for step in cfg.curriculum:
        assert (step.train.train_batch_size, step.train.warmup_steps, step.train.seed) == (8, 4000, 4680)
    assert (cfg.student.towers, cfg.student.pooling, cfg.student.normalize) == ("separate", "cls", False)
    assert (cfg.candidates.sources, cfg.candidates.depth, cfg.recover) == (("student",), 200, None)


# -- what each of them would do -------------------------------------------------------------------


@pytest.fixture
def nothing_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, in which looking for a model or reading a collection is an error."""

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise AssertionError(f"a dry run looked at {arguments}")

    for place in (
        "raydrd.stages.adopt.find_model",
        "raydrd.flow.teachers.find_model",
        "raydrd.models.rerankers.has_head",
        "raydrd.flow.lab.digest",
        "raydrd.data.pydocs.identity",
        "socket.socket.connect",
    ):
        monkeypatch.setattr(place, refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dry_run_lists_the_trainings_of_every_config(name: str, nothing_is_touched: Path) -> None:
    cfg = config(name)
    made = plan(cfg)
    expected = len(cfg.trainings()) + len(cfg.warm_up) + (cfg.recover is not None and cfg.student.layers is not None)
    assert counts(made)["trainings of the student"] == expected
    assert made.stages[0].label == "load" and made.stages[-1].label in ("verify export", "recall of index")
    assert "verify export" in [one.label for one in made.stages]
    assert list(nothing_is_touched.iterdir()) == []


# Of the configs at published sizes: trainings of the student, of teachers, searches, scorings, comparisons of pairs.
SIZES = {
    "cldrd": (3, 0, 1, 1, 0),
    "adam": (1 + 1, 1, 2, 1 + 1, 0),  # a warm-up; the dark examples are scored too
    "prod": (2 + 4, 3, 6, 4, 0),  # W1, W3, three teachers' turns and the confusing queries; each with fresh negatives
    "pairdistill": (1 + 2, 0, 1 + 2, 2, 2 + 1),  # the pairwise teacher is tried on dev once
    "md2pr": (1 + 3, 3, 1 + 3, 3, 0),  # the teacher learns anew in each round
    "margin_mse": (1, 0, 1, 1, 0),
}


@pytest.mark.parametrize("recipe", SIZES)
def test_the_stages_at_published_sizes(recipe: str, nothing_is_touched: Path) -> None:
    assert tuple(counts(plan(config(f"msmarco/{recipe}.yaml"))).values()) == SIZES[recipe]


def numbers(train: Any) -> tuple[Any, ...]:
    return train.learning_rate, train.train_batch_size, train.train_group_size, train.max_steps, train.warmup_steps


def test_the_published_sizes_of_prod() -> None:
    cfg = config("msmarco/prod.yaml")
    assert [numbers(one.train) for one in cfg.warm_up] == [(2e-5, 128, 2, 40_000, 4_000), (2e-5, 128, 2, 10_000, 1_000)]
    assert [numbers(step.train) for step in cfg.progress] == [
        (5e-5, 128, 2, 40_000, 4_000),
        (5e-5, 64, 16, 40_000, 4_000),
        (5e-5, 64, 16, 40_000, 4_000),
    ]
    assert [(step.mined_by, step.anchor) for step in cfg.progress] == [("student", False), ("teacher", True), ("student", True)]
    assert numbers(cfg.progress[1].teacher.train.train) == (1e-5, 256, 16, 6_000, 1_000)
    assert numbers(cfg.teacher.train.train) == (5e-6, 256, 16, 6_000, 600)
    assert numbers(cfg.data_progressive.train) == (1e-5, 64, None, 2_000, 200)
    everything = (*cfg.trainings(), *(one.train for one in cfg.warm_up), cfg.teacher.train.train)
    assert {(one.weight_decay, one.max_grad_norm, one.seed) for one in everything} == {(0.0, 2.0, 42)}
    # The student's updates of the paper: 50,000 before, 3 x 40,000 and 2,000.
    assert sum(one.max_steps for one in (*cfg.trainings(), *(w.train for w in cfg.warm_up))) == 172_000
    loss = cfg.loss
    assert (loss.ce_weight, loss.kd_weight, loss.lwf_weight, loss.temperature) == (0.1, 0.9, 1.0, 4.0)
    assert (cfg.student.layers, cfg.student.towers, cfg.candidates.depth) == ((0, 1, 2, 3, 4, 5), "separate", 200)
    assert cfg.progress[0].teacher.towers == "separate"


def test_the_published_sizes_of_pairdistill() -> None:
    cfg = config("msmarco/pairdistill.yaml")
    assert (cfg.pairs.top_k, cfg.pairs.window, cfg.pairs.pairs, cfg.symmetrize, cfg.lists.size) == (20, 5, 8, False, 64)
    assert (cfg.loss.form, cfg.loss.lambda_pair, cfg.loss.tau, cfg.candidates.depth) == ("dpr", 1.0, 1.0, 100)
    assert (cfg.teacher.max_length, cfg.pairwise.max_length, cfg.pairwise.prompt) == (180, 360, "duot5")
    assert [(r.learning_rate, r.train_batch_size, r.num_train_epochs, r.warmup_steps) for r in cfg.rounds] == [
        (3e-5, 36, 1, 10_000)
    ] * 2


def test_the_sizes_designed_for_adam_and_md2pr_are_the_defaults_of_their_parts() -> None:
    adam, md2pr = config("msmarco/adam.yaml"), config("msmarco/md2pr.yaml")
    assert adam.dark == type(adam.dark)() and adam.pacing == type(adam.pacing)()
    assert (adam.loss.tau, adam.loss.lambda_cl, adam.rounds) == (1.0, 0.1, 1)
    assert md2pr.words == type(md2pr.words)()
    assert md2pr.filter == type(md2pr.filter)(standardise=True)  # its teacher learns anew, so its scores move
    assert (md2pr.loss.lambda_s, len(md2pr.rounds), md2pr.retrain, md2pr.candidates.depth) == (1.0, 3, True, 100)
