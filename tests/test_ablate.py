"""`raydrd ablate`: numbers are those of the students it trained, what is shared is made once, and refusals are rows."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydrd import ablating
from raydrd.ablating import Row, ablate, ideas
from raydrd.cli import main
from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.recipes import RECIPES
from raydrd.report import ablation
from raydrd.session import read_config
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from raydrd.stages.shards import parts_of
from raydrd.statistics import compare, holm
from tests.conftest import write_config
from tests.pages import Page
from tests.recipes import steps

ROOT = Path(__file__).resolve().parents[1]
EVIL = "</script><img src=x onerror=alert(1)> a|b *c* \x1b[31m"
CURRICULUM = ["curriculum: last step only", "curriculum: reversed"]


def _adam(toy_config: dict[str, Any]) -> dict[str, Any]:
    values = {name: copy.deepcopy(v) for name, v in toy_config.items() if name != "curriculum"}
    values |= {
        "recipe": "adam",
        "lists": {"negatives": 7, "pool": 30, "ranking": "student"},
        "train": steps(3),
    }
    # From 5 sources 6 reinforced negatives cannot be built: one variant cannot be run.
    values["dark"] = {"built": 5, "reinforced": 3, "noisy": 3, "sources": 5, "reuse": 1}
    return values


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def config(home: Path, toy_config: dict[str, Any]) -> str:
    values = copy.deepcopy(toy_config)
    for step, count in zip(values["curriculum"], (6, 2, 2), strict=True):
        step["train"]["max_steps"] = count
    return write_config(home / "toy.yaml", values)


@pytest.fixture(scope="module")
def found(home: Path, config: str) -> dict[str, Any]:
    """CL-DRD on the toy world with two seeds."""
    return ablate(config, [], seeds=2, out=str(home / "out"), store=str(home / "store"))


@pytest.fixture(scope="module")
def kept(home: Path) -> Store:
    return Store(Folder.of(home / "store"), Cluster(Resources(ray="off")))


def _stages(found: dict[str, Any], row: str, seed: int, name: str = "") -> list[dict[str, Any]]:
    return [s for s in found["stages"] if (s["row"], s["seed"]) == (row, seed) and name in ("", s["name"])]


def _judged(kept: Store, found: dict[str, Any], row: str, seed: int) -> dict[str, np.ndarray]:
    (last,) = [s for s in _stages(found, row, seed, "evaluate") if s["label"] == "evaluate after"]
    table = pa.concat_tables(part for _, part in parts_of(kept.find("evaluate", last["id"])).each())
    return {name: table[name].to_numpy() for name in table.column_names if name != "query_row"}


def test_rows_and_effects_are_those_of_the_students(found: dict[str, Any], kept: Store) -> None:
    assert [(r["label"], r["kind"]) for r in found["rows"]] == [
        ("student before", "before"),
        ("all ideas", "whole"),
        *((label, "variant") for label in CURRICULUM),
    ]
    assert (found["metric"], found["metrics"], found["queries"]) == ("nDCG@10", ["nDCG@10", "RR@10", "R@100"], 12)
    values = {}
    for row in found["rows"][1:]:
        seeds = [_judged(kept, found, row["label"], seed) for seed in (0, 1)]
        for metric in found["metrics"]:
            means = [one[metric].mean() for one in seeds]
            assert row["by_seed"][metric] == pytest.approx(means)
            assert row["mean"][metric] == pytest.approx(sum(means) / 2)
            assert row["std"][metric] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)  # of two, n - 1 below the line
        values[row["label"]] = (seeds[0]["nDCG@10"] + seeds[1]["nDCG@10"]) / 2
        assert row["updates"] == [10, 10] and len(set(row["students"])) == 2
    assert len({tuple(v) for v in values.values()}) == 3, "the rows are of different students"
    expected = [asdict(compare(values["all ideas"], values[label], seed=0, samples=200)) for label in CURRICULUM]
    assert [e["without"] for e in found["effects"]] == CURRICULUM
    for effect, wanted in zip(found["effects"], expected, strict=True):
        assert {name: effect[name] for name in wanted} == pytest.approx(wanted)
    assert [e["p_holm"] for e in found["effects"]] == pytest.approx(holm([e["p"] for e in expected]))
    before = found["rows"][0]
    assert before["std"]["nDCG@10"] is None and before["mean"]["nDCG@10"] != found["rows"][1]["mean"]["nDCG@10"]
    assert found["warnings"] == [] and found["notes"] == []


def test_the_teacher_is_asked_once(found: dict[str, Any], kept: Store) -> None:
    whole, *variants = found["rows"][1:]
    pairs = [kept.find("score_pairs", s["id"]).metrics["pairs"] for s in found["stages"] if s["name"] == "score_pairs"]
    assert len(pairs) == 2 and whole["pairs"] == {"needed": sum(pairs), "made": sum(pairs)}  # preflight, and training
    assert pairs[1] == 24 * 60  # the pool is the whole corpus
    assert [row["pairs"] for row in variants] == [{"needed": 0, "made": 0}] * 2
    assert found["teacher_pairs"] == whole["pairs"]


def test_a_seed_changes_trainings_and_what_follows_only(found: dict[str, Any], kept: Store) -> None:
    for row in ("all ideas", *CURRICULUM):
        assert {s["name"] for s in _stages(found, row, 1)} == {"train", "embed", "search", "evaluate"}
        first, second = ([kept.find("train", s["id"]) for s in _stages(found, row, seed, "train")] for seed in (0, 1))
        assert len(first) == len(second) > 0
        for a, b in zip(first, second, strict=True):
            one, other = copy.deepcopy(a.manifest["inputs"]), copy.deepcopy(b.manifest["inputs"])
            assert (one["config"]["fields"].pop("seed"), other["config"]["fields"].pop("seed")) == (4680, 4681)
            one.pop("start")
            other.pop("start")
            assert one == other  # the same lists, tokens, objective
    assert {s["name"] for s in _stages(found, CURRICULUM[1], 0)} == {"train", "embed", "search", "evaluate"}  # lists are known


def test_the_same_command_again_makes_nothing(home: Path, config: str, found: dict[str, Any]) -> None:
    again = ablate(config, [], seeds=2, out=str(home / "again"), store=str(home / "store"))
    assert [s for s in again["stages"] if not s["reused"]] == []
    assert [s["id"] for s in again["stages"]] == [s["id"] for s in found["stages"]]
    assert again["effects"] == found["effects"]
    assert again["teacher_pairs"] == {"needed": found["teacher_pairs"]["needed"], "made": 0}
    for row, other in zip(found["rows"], again["rows"], strict=True):
        assert other["made"] == 0 and other["by_seed"] == row["by_seed"]
    assert found["rows"][1]["made"] > 0


def test_the_whole_row_is_the_run(home: Path, config: str, found: dict[str, Any]) -> None:
    from raydrd.session import run

    report = run(config, [], out=str(home / "run"), store=str(home / "store"))
    assert report["artifacts"]["student"] == found["rows"][1]["students"][0]
    assert report["systems"]["student"]["nDCG@10"] == pytest.approx(found["rows"][1]["by_seed"]["nDCG@10"][0])


@pytest.mark.usefixtures("found")
def test_adam_with_a_variant_that_is_refused(
    home: Path, toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_config(home / "adam.yaml", _adam(toy_config)), home / "adam"
    assert main(["ablate", path, "--out", str(out), "--store", str(home / "store")]) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "ablation.json").read_text())
    rows = {row["label"]: row for row in found["rows"]}
    noisy, reinforced = "dark examples: noisy positives only", "dark examples: reinforced negatives only"
    ran = ["dark examples: none", "self-paced: all queries at once"]
    assert list(rows) == ["student before", "all ideas", ran[0], noisy, reinforced, ran[1]]
    why = "config: dark: value error, sources=5 negatives used reuse=1 times make 5 texts, fewer than built=6"
    assert rows[reinforced]["refusal"].startswith(why)
    assert rows[reinforced]["mean"] == {} and rows[reinforced]["updates"] == [] and rows[noisy]["refusal"] is None
    assert [e["without"] for e in found["effects"]] == [ran[0], noisy, ran[1]]
    assert f"refused: {reinforced}: {why}" in said and re.search(rf"{reinforced} +refused", said)
    assert "note: one seed: an effect holds the luck of one training too; add --seeds 3" in said
    assert f"ablation 4 of 5: {reinforced}: refused" in said and f"ablation 5 of 5: {ran[1]}\n" in said
    # Other dark examples are other texts, which the teacher has not read; the others are taken from what it has.
    extra = {label: row["pairs"] and row["pairs"]["needed"] for label, row in rows.items()}
    assert extra[noisy] > 0 == extra[ran[0]] == extra[ran[1]]
    needed = extra["all ideas"] + extra[noisy]
    assert found["teacher_pairs"] == {"needed": needed, "made": needed - 12 * 30}  # the preflight lay in CL-DRD's store


def test_only_some_ideas(home: Path, config: str, found: dict[str, Any]) -> None:
    out, store = str(home / "some"), str(home / "store")
    other = ablate(config, [], seeds=2, only=["Curriculum: Reversed"], out=out, store=store)
    assert [row["label"] for row in other["rows"]] == ["student before", "all ideas", CURRICULUM[1]]
    assert other["notes"] == [f"not run (--only): {CURRICULUM[0]}"]
    (effect,) = other["effects"]
    assert effect["p_holm"] == effect["p"] == found["effects"][1]["p"]  # one test, nothing to correct for
    assert [one.label for one in ideas(read_config(config, []), ["curriculum"])] == CURRICULUM


def test_a_variant_that_its_run_refuses_is_a_row(
    home: Path, config: str, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RECIPES["cldrd"].run

    def picky(cfg: Any, lab: Any) -> Any:
        if len(cfg.curriculum) == 1:
            raise InputError("curriculum: one step is none")
        return whole(cfg, lab)

    monkeypatch.setattr(RECIPES["cldrd"], "run", picky)
    other = ablate(config, [], out=str(home / "picky"), store=str(home / "store"))
    assert [row["refusal"] for row in other["rows"]] == [None, None, "curriculum: one step is none", None]
    assert [e["without"] for e in other["effects"]] == CURRICULUM[1:]
    # Without the whole recipe there is nothing to compare with.
    monkeypatch.setattr(RECIPES["cldrd"], "run", lambda cfg, lab: picky(cfg.model_copy(update={"curriculum": (1,)}), lab))
    with pytest.raises(InputError, match="one step is none"):
        ablate(config, [], out=str(home / "picky"), store=str(home / "store"))


def test_list_runs_nothing(toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = write_config(tmp_path / "adam.yaml", _adam(toy_config)), tmp_path / "store"
    assert main(["ablate", path, "dark.reinforced=2", "--list", "--store", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "dark examples: none" and lines[0].endswith("  changes dark, pacing")
    assert lines[3].startswith("self-paced: all queries at once ") and len(lines) == 4
    assert not store.exists() and not (tmp_path / "runs").exists()
    assert main(["ablate", path, "--list", "--only", "dark examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "  refused: config: dark: value error, sources=5 negatives" in lines[2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "dark exmples"], "ablate --only 'dark exmples': no such idea; did you mean 'dark examples'?"),
        (["--only", "curriculum"], "no such idea; write one of dark examples, self-paced, dark examples: none, "),
        (["--only", "dark examples", "train.seed=1"], "'train.seed=1': no such idea; write overrides before the options"),
        (["--seeds", "0"], "ablate --seeds 0: write 1 or more"),
        (["train.sed=1"], "train.sed: unknown field; did you mean 'seed'?"),
        (["recipe=margin_mse", "dark=null"], "dark: unknown field"),
    ],
)
def test_a_mistake_is_one_clear_line(
    more: list[str], message: str, toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path / "adam.yaml", _adam(toy_config))
    assert main(["ablate", path, *more, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("raydrd:") and message in said and said.count("\n") <= 2
    assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()


def test_a_recipe_without_variants(toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = copy.deepcopy(toy_config)
    values["curriculum"] = values["curriculum"][:1]
    single = write_config(tmp_path / "single.yaml", values)
    del values["curriculum"]
    margins = write_config(tmp_path / "m.yaml", {**values, "recipe": "margin_mse", "train": steps(3)})
    for path, recipe in ((single, "cldrd"), (margins, "margin_mse")):
        for more in ([], ["--list"]):
            assert main(["ablate", path, *more]) == 2
            said = capsys.readouterr().err
            assert f"this config of recipe {recipe} has no idea that can be left out; write" in said and said.count("\n") == 1


def test_unequal_budgets_and_ideas_that_change_nothing_are_told() -> None:
    values = {"nDCG@10": np.array([[0.5, 0.25]])}
    whole = Row("all ideas", values, updates=(40,), students=("train/a",))
    more = Row("x: none", {"nDCG@10": np.array([[0.5, 0.75]])}, updates=(45,), students=("train/b",))
    same = Row("y: none", {"nDCG@10": np.array([[0.5, 0.25]])}, updates=(40,), students=("train/c",))
    refused = Row("z: none", {}, refusal="no")
    assert ablating._warnings(whole, [more, same, refused]) == [
        "x: none: 45 updates, all ideas have 40: its effect is not that of the idea alone",
        "y: none: the same values as all ideas on every query; in this config the idea changes nothing",
    ]


def test_the_files_hold_what_was_found(found: dict[str, Any], tmp_path: Path) -> None:
    ablation.write(found, out=Folder.of(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ablation.html", "ablation.json", "ablation.md"]
    assert json.loads((tmp_path / "ablation.json").read_text()) == found
    page = Page((tmp_path / "ablation.html").read_text())
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "onclick", "onerror"} & page.attributes
    assert page.tags.count("tr") == 1 + 2 + 1 + 4 and ablation.verdict(found) in page.text
    for row in found["rows"]:
        assert row["label"] in page.text and f"{row['mean']['nDCG@10']:.3f}" in page.text
    table = [line for line in (tmp_path / "ablation.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and {line.count("|") for line in table} == {11}
    effect = found["effects"][0]
    assert f"{effect['difference']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]" in table[4]


def test_the_terminal_is_aligned_ascii(found: dict[str, Any]) -> None:
    text = ablation.terminal(found)
    assert text.isascii()
    rows, effects, *_ = text.split("\n\n")
    head, rule, *body = rows.splitlines()
    assert head.split() == ["nDCG@10", "sd", "RR@10", "R@100", "updates", "teacher", "pairs"]
    assert {len(line) for line in (head, rule, *body)} == {len(head)} and len(body) == 4
    whole = found["rows"][1]
    assert body[1].split()[2:4] == [f"{whole['mean']['nDCG@10']:.3f}", f"{whole['std']['nDCG@10']:.3f}"]
    assert body[1].endswith(f"{whole['pairs']['needed']:,}") and body[2].endswith("+0")
    assert "12 queries, 2 seeds" in effects and effects.count("\n") == 5
    assert f"pairs scored by the teacher: whole run {whole['pairs']['needed']:,}; variants: +0; made by this command: " in text


def _hostile(found: dict[str, Any]) -> dict[str, Any]:
    evil = json.loads(json.dumps(found).replace(CURRICULUM[1], "OTHER"))
    evil["rows"][3] |= {"label": EVIL, "updates": [10, 11]}
    evil["effects"][1] |= {"without": EVIL, "difference": 0.9, "low": 0.8, "high": 1.0, "p_holm": 0.001}
    evil["rows"].append({**evil["rows"][3], "label": "r", "refusal": EVIL, "mean": {}, "std": {}, "updates": [], "by_seed": {}})
    evil |= {"name": EVIL, "warnings": [EVIL], "notes": [EVIL]}
    evil["changes"][EVIL] = [EVIL]
    return evil


def test_other_peoples_texts_are_escaped(found: dict[str, Any]) -> None:
    evil = _hostile(found)
    text = ablation.render(evil)
    page = Page(text)
    assert "<img" not in text and "</script>" not in text and not {"img", "script"} & set(page.tags)
    assert page.text.count("</script><img src=x onerror=alert(1)> a|b *c*") >= 6
    table = [line for line in ablation.markdown(evil).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    assert "<img" not in ablation.markdown(evil).replace("\\<", "") and "\x1b" not in ablation.markdown(evil)
    said = ablation.terminal(evil)
    assert "\x1b" not in said and "10 / 11!" in said and "refused: r: </script>" in said and "WARNING: </script>" in said
    assert "**+0.900 [+0.800, +1.000]**" in ablation.markdown(evil)
    assert re.search(r"clearly better than \d \(</script>", ablation.verdict(evil))


def test_nothing_could_be_run(found: dict[str, Any]) -> None:
    none = {**found, "effects": [], "rows": [*found["rows"][:2], {**found["rows"][2], "refusal": "no", "mean": {}, "std": {}}]}
    assert "nothing is known of its ideas" in ablation.terminal(none)
    assert "refused" in ablation.render(none) and "(refused)" in ablation.markdown(none)


def test_as_a_job() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "ablate.py"), "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "Every row has the same updates" in done.stdout and "ablate [-h]" in done.stdout
