"""Every config of the repository is one that a run would take."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raydrd.errors import InputError
from raydrd.session import read_config

HOME = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted(path.relative_to(HOME).as_posix() for path in HOME.rglob("*.yaml"))


def own_path(name: str) -> list[str]:
    """The override that a config without a folder of its own asks for in its first lines."""
    data = yaml.safe_load((HOME / name).read_text(encoding="utf-8"))["data"]
    return [] if data["source"] == "pydocs" or "path" in data else ["data.path=anywhere"]


def test_the_list_of_configs_holds_the_known_ones() -> None:
    assert {"quickstart.yaml", "beir/cldrd.yaml", "msmarco/cldrd.yaml"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_names_its_run(name: str) -> None:
    values = yaml.safe_load((HOME / name).read_text(encoding="utf-8"))
    cfg = read_config(str(HOME / name), own_path(name))
    assert cfg.recipe == values["recipe"]
    folder = (cfg.data.path or "").rpartition("/")[2]
    assert cfg.name == values.get("name", f"{folder}-{Path(name).stem}" if folder else Path(name).stem)
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
    cfg = read_config(str(HOME / "msmarco/cldrd.yaml"), ["data.path=anywhere"])
    shapes = [(step.lists.graded, step.lists.hard, step.lists.rest) for step in cfg.curriculum]
    rates = [(step.train.learning_rate, step.train.num_train_epochs) for step in cfg.curriculum]
    assert shapes == [(5, 12, 13), (10, 10, 10), (30, 0, 0)]
    assert rates == [(7e-6, 4), (3e-6, 2), (3e-6, 2)]
    for step in cfg.curriculum:
        assert (step.train.train_batch_size, step.train.warmup_steps, step.train.seed) == (8, 4000, 4680)
    assert (cfg.student.towers, cfg.student.pooling, cfg.student.normalize) == ("separate", "cls", False)
    assert (cfg.candidates.sources, cfg.candidates.depth, cfg.recover) == (("student",), 200, None)
