"""CL-DRD from end to end on the toy world: it teaches, it remembers, and it makes anew only what changed."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from raydrd.session import run
from tests.recipes import METRIC, assert_found_again, assert_learns, gain, made, open_store, run_toy


def test_the_student_learns_what_its_teacher_knows(toy_run: dict[str, Any]) -> None:
    systems = toy_run["systems"]
    assert systems["teacher"][METRIC] == 1.0
    assert systems["student"]["RR@10"] > systems["student_before"]["RR@10"] + 0.2
    better = assert_learns(toy_run, by=0.25)
    assert better["p"] < 0.05
    devs = [segment["dev_after"][METRIC] for segment in toy_run["curve"]["segments"]]
    assert len(devs) == 3 and devs[-1] > toy_run["curve"]["segments"][0]["dev_before"][METRIC] + 0.2


def test_the_stages_tell_the_papers_story(toy_run: dict[str, Any]) -> None:
    story = ["load", "adopt", "import_teacher", "search", "score_pairs", *["assemble", "train"] * 3]
    told = [stage["name"] for stage in toy_run["stages"]]
    at = 0
    for name in story:
        at = told.index(name, at) + 1
    # The pool is built and scored once for all three steps; each step starts where the one before ended.
    scored = [s["label"] for s in toy_run["stages"] if s["name"] == "score_pairs"]
    assert scored == ["score dev, dev (teacher)", "score train (teacher)", "score test (teacher)"]  # dev: preflight
    assert [s["label"] for s in toy_run["stages"] if s["name"] == "train"] == [
        "train step 1: 5/5/10",
        "train step 2: 10/5/5",
        "train step 3: 20/0/0",
    ]
    assert told.count("evaluate") == 3 + 4 + 4  # preflight, dev before and after each step, the four systems on test
    keep = open_store(toy_run["store"])
    trained = [keep.find("train", s["id"]) for s in toy_run["stages"] if s["name"] == "train"]
    starts = [t.manifest["inputs"]["start"]["artifact"] for t in trained]
    before = next(s for s in toy_run["stages"] if s["name"] == "adopt")
    assert starts == [f"adopt/{before['id']}", f"train/{trained[0].id}", f"train/{trained[1].id}"]


def test_the_run_folder_is_whole(toy_run: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    home = toy_run["folder"]
    wanted = ["config.yaml", "report.json", "report.html", "run.trec", "per_query.parquet"]
    wanted += ["model/README.md", "index/index.faiss"]
    assert [name for name in wanted if not (home / name).is_file()] == []
    lines = (home / "run.trec").read_text().splitlines()
    assert len(lines) == 12 * 60 and lines[0].split()[1] == "Q0" and lines[0].split()[3] == "1"
    vectors = SentenceTransformer(str(home / "model"), device="cpu").encode(["wave tide", "tide reef", "judge court"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert toy_run["provenance"]["export_difference"] < 1e-4 and toy_run["queries"] == 12
    assert not [p for p in home.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_same_command_again_reuses_everything(toy_run: dict[str, Any], tmp_path: Path) -> None:
    began = time.monotonic()
    assert_found_again(toy_run, tmp_path)
    assert time.monotonic() - began < 10


def test_other_resources_give_the_same_ids(toy_run: dict[str, Any], tmp_path: Path) -> None:
    changes = ["resources.rows_per_shard=7", "resources.tokens_per_batch=128", "resources.per_device_train_batch_size=2"]
    again = run(toy_run["config"], changes, out=str(tmp_path / "again"), store=str(toy_run["store"]))
    assert made(again) == []


def test_another_last_step_makes_anew_the_last_lists_and_what_follows(toy_run: dict[str, Any], tmp_path: Path) -> None:
    changed = run(toy_run["config"], ["curriculum.2.lists.graded=15"], out=str(tmp_path / "c"), store=str(toy_run["store"]))
    anew = [(s["name"], s["label"]) for s in changed["stages"] if not s["reused"]]
    assert anew[:2] == [("assemble", "lists of step 3: 15/0/0"), ("train", "train step 3: 15/0/0")]
    follows = {"embed", "search", "evaluate", "build_index", "verify_export"}
    assert {name for name, _ in anew[2:]} == follows
    assert [label for name, label in anew if name == "evaluate"] == ["evaluate dev (step 3: 15/0/0)", "evaluate after"]
    lists = next(s for s in changed["stages"] if s["label"] == "lists of step 3: 15/0/0")
    assert lists["because"] == ["rule.graded: 20 -> 15"]


def test_a_cut_student_with_made_queries_and_without_judgements(toy: Path, toy_config: dict[str, Any], tmp_path: Path) -> None:
    """The paper's T variant: the teacher's order alone; here with a cut start, recovery and two sources as well."""
    values = copy.deepcopy(toy_config)
    values["student"] = {"model": str(toy / "deep"), "layers": 2, "towers": "separate"}
    values["recover"] = {"passages": 50, "train": {"learning_rate": 1.0e-3, "train_batch_size": 16, "max_steps": 5}}
    values["queries"] = {"count": 20, "sentences": 1}
    values["candidates"] = {"sources": ["student", "bm25"], "depth": 60}
    values["curriculum"] = values["curriculum"][:1]
    values["curriculum"][0]["lists"]["positives"] = "teacher"
    values["curriculum"][0]["train"]["max_steps"] = 30
    report = run_toy(tmp_path, values)
    assert gain(report) > 0.2
    told = [s["name"] for s in report["stages"]]
    assert told.index("imitate") < told.index("join_candidates") < told.index("score_pairs") < told.index("train")
    lists = next(s for s in report["stages"] if s["name"] == "assemble")
    assert lists["rows"] == 24 + 20
    assert [s["label"] for s in report["curve"]["segments"]] == ["recover", "step 1: 5/5/10"]
    assert (tmp_path / "run" / "model" / "router_config.json").is_file()
