"""The model card, and the list of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydrd.card import model_card
from raydrd.cli import EPILOG, main
from raydrd.models.layout import Layout
from raydrd.recipes import RECIPES
from tests.reports import a_report


@pytest.fixture
def report() -> dict[str, Any]:
    return a_report()


def _carded(report: dict[str, Any]) -> dict[str, Any]:
    report["config"] = {
        "student": {"model": "small", "layers": 2},
        "teacher": {"kind": "cross_encoder", "model": "big"},
        "data": {"source": "beir", "path": "scifact"},
    }
    report["provenance"] |= {"hardware": "2 cores", "export_difference": 1e-6, "data_digest": "d1"}
    return report


def test_the_card_names_method_and_teachers(report: dict[str, Any]) -> None:
    layout = Layout(query_max_len=32, passage_max_len=64)
    report = _carded(report)
    old = model_card(report, layout)
    assert "(cldrd) from `big` into\n`small`, cut to 2 layers" in old and "Method" not in old
    abstract = {name for name, module in RECIPES.items() if "abstract" in str(module.__doc__)}
    assert abstract == {"adam", "md2pr"}
    for name, module in RECIPES.items():
        card = model_card({**report, "recipe": name, "method": module.SUMMARY}, layout)
        said = " ".join(card.split())
        assert f"Method: {module.SUMMARY.removesuffix('; from the abstract')}." in said and f"raydrd ({name})" in said
        assert ("It is implemented from the abstract" in said) == (name in abstract)
    report["config"]["teacher"] = {"kind": "ensemble", "members": [{"model": "one"}, {"model": "two"}]}
    assert "from `one` + `two` into" in model_card(report, layout)
    report["config"]["teacher"] = {"kind": "scores"}
    assert "from ready-made scores into" in model_card(report, layout)


def test_recipes_are_listed_with_the_configs_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs/mine").mkdir(parents=True)
    (tmp_path / "configs/mine/base.yaml").write_text("recipe: adam\n")
    (tmp_path / "configs/mine/other.yaml").write_text("extends: base.yaml\nname: other\n")
    (tmp_path / "configs/broken.yaml").write_text("[1, 2]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    said = capsys.readouterr()
    assert "left out: configs/broken.yaml" in said.err
    lines = said.out.splitlines()
    for name, module in RECIPES.items():
        at = lines.index(f"{name:<12} {module.SUMMARY}")
        wanted = "configs/mine/base.yaml  configs/mine/other.yaml" if name == "adam" else f"write one with recipe: {name}"
        assert lines[at + 1].endswith(wanted)
        assert f"  {name:<12} {module.SUMMARY}\n" in EPILOG
