"""A sweep without Ray: records, what is shared, going on after an end, the result and its best config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raydrd.cli import main
from raydrd.errors import InputError
from raydrd.flow import learn
from raydrd.session import run
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from raydrd.stages.scorers import CrossEncoderScorer
from raydrd.sweeping.claims import Leases
from raydrd.sweeping.main import _Board, sweep
from raydrd.sweeping.plan import Plan, Trial, read_plan
from raydrd.sweeping.tracking import Tracking
from raydrd.sweeping.work import read_record, run_trial, write_record
from tests.sweeps import EXACT, GRADED, METRIC, records, step, toy_sweep, trained

SPACE = {
    "curriculum": {"named": {"later": [step(GRADED, 10), step(EXACT, 5)], "exact": [step(EXACT, 20)]}},
    "loss.score_scale": {"choice": [20, 40]},
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs of every call of a cross-encoder."""
    asked: list[int] = []
    plain = CrossEncoderScorer.scores

    def counting(self: CrossEncoderScorer, query_rows: Any, *doc_rows: Any) -> Any:
        asked.append(len(query_rows))
        return plain(self, query_rows, *doc_rows)

    monkeypatch.setattr(CrossEncoderScorer, "scores", counting)
    return asked


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(home: Path, toy_config: dict[str, Any]) -> dict[str, Any]:
    """A grid of four points beside the default, two fresh seeds, TensorBoard and a plain search."""
    asked: list[int] = []
    plain = CrossEncoderScorer.scores

    def counting(self: CrossEncoderScorer, query_rows: Any, *doc_rows: Any) -> Any:
        asked.append(len(query_rows))
        return plain(self, query_rows, *doc_rows)

    file = toy_sweep(home, toy_config, space=SPACE, search="grid", confirm={"seeds": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrossEncoderScorer, "scores", counting)
        found = sweep(file, [], out=str(home / "out"), store=str(home / "store"))
    return {"result": found, "calls": sum(asked), "file": file}


def test_all_trials_ask_the_teacher_what_one_asks(swept: dict[str, Any], home: Path, tmp_path: Path, calls: list[int]) -> None:
    file = swept["file"]
    alone = read_plan(file, ["space={}", "seeds=2"]).cfg  # the default, alone, in a store of its own
    from raydrd.flow.lab import open_lab
    from raydrd.recipes import RECIPES

    store = Store(Folder.of(tmp_path / "store"), Cluster(alone.resources))
    RECIPES["cldrd"].run(alone, open_lab(alone, store))
    assert sum(calls) == swept["calls"] > 0
    work = swept["result"]["work"]
    assert work["teacher_pairs_all"] == work["teacher_pairs_default"] == swept["calls"]
    assert work["teacher_pairs_confirm"] == 0


def test_equal_first_steps_are_trained_once(swept: dict[str, Any], home: Path) -> None:
    """`later` begins as the default does: with its score scale of 20, its first student is the default's."""
    found = records(home / "out")
    later = next(r for r in found.values() if r["point"] == {"curriculum": "later", "loss.score_scale": 20})
    trainings = {one["label"]: one["reused"] for one in later["journal"] if one["name"] == "train"}
    assert trainings == {"train step 1: 5/5/10": True, "train step 2: 20/0/0": False}
    work = swept["result"]["work"]
    assert (work["updates"], work["updates_unshared"]) == (20 + 5 + 15 + 20 + 20, 20 + 15 + 15 + 20 + 20)


def test_reports_are_every_look_at_dev_over_the_methods_updates(swept: dict[str, Any]) -> None:
    result = swept["result"]
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 5
    later = result["trials"][1]
    assert [(one["segment"], one["updates"]) for one in later["reports"]] == [
        ("before", 0), ("step 1: 5/5/10", 10), ("step 2: 20/0/0", 15),
    ]  # fmt: skip
    assert later["dev"] == later["reports"][-1]["dev"] and set(later["dev"]) == {"nDCG@10", "RR@10", "R@100"}
    assert result["default"] == result["trials"][0] and result["default"]["label"] == "default"
    seconds = [one["seconds"] for one in later["reports"]]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= later["seconds"]
    assert later["size"] == {
        "layers": 2, "dim": 32, "type": "float32", "index": "Flat", "bytes_per_passage": 128.0, "passages_per_second": None
    }  # fmt: skip


def test_the_best_is_the_highest_on_dev_and_runs_as_it_stands(swept: dict[str, Any], home: Path, tmp_path: Path) -> None:
    result = swept["result"]
    values = [trial["dev"][METRIC] for trial in result["trials"]]
    assert result["best"] == int(np.argmax(values)) and values[result["best"]] > values[0]
    text = (home / "out" / "best.yaml").read_text()
    assert f"trial {result['best']}," in text and f"{values[result['best']]:.4f}" in text
    report = run(str(home / "out" / "best.yaml"), [], out=str(tmp_path / "run"), store=str(home / "store"))
    trainings = [one for one in report["stages"] if one["name"] == "train"]
    assert f"train/{trainings[-1]['id']}" == result["trials"][result["best"]]["student"]
    assert all(one["reused"] for one in trainings)
    assert report["name"] == "run" and report["config"]["name"] == "sweep-best"


def test_the_confirmation_has_fresh_seeds_and_test_queries(swept: dict[str, Any], home: Path) -> None:
    found = swept["result"]["confirmation"]
    assert (found["split"], found["seeds"], found["fresh"]) == ("test", 2, [1000, 1001])
    best, default = found["rows"]
    assert (best["kind"], default["kind"]) == ("best", "default") and best["queries"] == 12
    assert len({one[METRIC] for row in found["rows"] for one in row["by_seed"]}) == 4, "four trainings, all different"
    effect = found["effect"][METRIC]
    assert effect["difference"] == pytest.approx(best["mean"][METRIC] - default["mean"][METRIC])
    assert effect["low"] <= effect["difference"] <= effect["high"] and 0 < effect["p"] <= 1
    used = {r["config"]["curriculum"][0]["train"]["seed"] for name, r in records(home / "out").items() if "confirm" in name}
    assert used == {4680 + 1000, 4680 + 1001}


def test_curves_are_written_for_tensorboard(swept: dict[str, Any], home: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    folders = sorted((home / "out" / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == [f"{number:03d}" for number in range(5)]
    data = next(folders[1].iterdir()).read_bytes()
    points, at = [], 0
    while at < len(data):  # length, its checksum, an event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        points += [(value.tag, event.step, value.simple_value) for value in event.summary.value if value.simple_value]
        at += size + 16
    expected = [("dev/nDCG_at_10", one["updates"], one["dev"][METRIC]) for one in swept["result"]["trials"][1]["reports"]]
    found = [point for point in points if point[0] == "dev/nDCG_at_10"]
    assert [point[:2] for point in found] == [point[:2] for point in expected]
    np.testing.assert_allclose([p[2] for p in found], [p[2] for p in expected], rtol=1e-6)


def test_the_result_is_plain_json_and_the_command_writes_its_page(
    swept: dict[str, Any], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again: everything is found, nothing is trained, the numbers are the same."""
    before, old = trained(home / "store"), records(home / "out")
    assert main(["sweep", swept["file"], "--out", str(home / "out"), "--store", str(home / "store")]) == 0
    assert trained(home / "store") == before and records(home / "out") == old
    again = json.loads((home / "out" / "sweep.json").read_text())
    for name in ("trials", "points", "best", "confirmation", "work", "importance", "config", "fields"):
        assert again[name] == json.loads(json.dumps(swept["result"][name])), name
    assert "best.yaml" in capsys.readouterr().out and (home / "out" / "sweep.html").exists()


def test_a_killed_sweep_goes_on_where_it_was(
    tmp_path: Path, toy_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [5, 40]}}, search="grid")
    plain, looks = learn._tell, 0

    def dies(lab: Any, event: dict[str, Any]) -> None:
        nonlocal looks
        plain(lab, event)
        looks += 1
        if looks == 3 + 3 + 2:  # the default, one trial, and the next one's first step
            raise KeyboardInterrupt

    where = {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    with monkeypatch.context() as patch:
        patch.setattr(learn, "_tell", dies)
        with pytest.raises(KeyboardInterrupt):
            sweep(file, [], **where)
    killed = records(tmp_path / "out")
    assert [(r["status"], len(r["reports"])) for r in killed.values()] == [("finished", 3), ("finished", 3), ("running", 2)]
    before = trained(tmp_path / "store")
    result = sweep(file, [], **where)
    after = trained(tmp_path / "store")
    assert len(before) == 5 and len(after) == 6 and {k: after[k] for k in before} == before
    last = records(tmp_path / "out")[list(killed)[2]]
    assert last["reports"][:2] == list(killed.values())[2]["reports"] and len(last["reports"]) == 3
    assert {one["label"]: one["reused"] for one in last["journal"] if one["name"] == "train"} == {
        "train step 1: 5/5/10": False, "train step 2: 20/0/0": False,
    }, "what the killed call made is this trial's work"  # fmt: skip
    assert last["seconds"] > list(killed.values())[2]["seconds"]
    assert result["work"]["updates"] == 60


def test_a_trial_that_fails_harms_no_other(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    """Scores so large that the gradient is not finite, which only training tells; then the same command again."""
    space = {"curriculum.1.train.warmup_ratio": {"choice": [0.1, 0.5]}, "loss.score_scale": {"choice": [20, 1.0e30]}}
    file = toy_sweep(tmp_path, toy_config, space=space, search="grid")
    where = {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    result = sweep(file, [], **where)
    found = {trial["label"]: trial for trial in result["trials"]}
    bad = [trial for trial in result["trials"] if trial["point"].get("loss.score_scale") == 1.0e30]
    good = [trial for trial in result["trials"] if trial not in bad]
    assert len(bad) == 2 and {trial["status"] for trial in bad} == {"failed"}, found
    assert all(trial["reason"] and "\n" not in trial["reason"] for trial in bad)
    assert len(good) == 2 and {trial["status"] for trial in good} == {"finished"}
    assert result["best"] in {trial["number"] for trial in good}
    assert sweep(file, [], **where)["trials"][-1]["status"] == "failed"


def test_a_sweep_of_failures_ends_with_1(
    tmp_path: Path, toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [1.0e30]}}, search="grid")
    assert main(["sweep", file, "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]) == 1
    assert "every trial failed; the first one: " in capsys.readouterr().err


def test_seeds_become_intervals(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    space = {"loss.score_scale": {"choice": [40]}}
    file = toy_sweep(tmp_path, toy_config, space=space, seeds=3)
    result = sweep(file, [], out=str(tmp_path / "out"), store=str(tmp_path / "store"))
    assert [point["trials"] for point in result["points"]] == [[0, 1, 2], [3, 4, 5]]
    for point in result["points"]:
        values = [result["trials"][number]["dev"][METRIC] for number in point["trials"]]
        found = point["dev"][METRIC]
        assert (found["mean"], found["std"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
        assert (found["min"], found["max"]) == (min(values), max(values))
        # Student's t with two degrees of freedom: 4.303, far beyond what a bootstrap of three values can reach.
        assert found["high"] - found["mean"] == pytest.approx(4.302653 * np.std(values, ddof=1) / 3**0.5, rel=1e-5)
        assert found["mean"] - found["low"] == pytest.approx(found["high"] - found["mean"])
    means = [point["dev"][METRIC]["mean"] for point in result["points"]]
    assert result["best_point"] == int(np.argmax(means))


def test_a_sweep_without_dev_queries_is_refused(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [1]}}, base={"preflight": "off"})
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["data"]["dev_split"] = None
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    with pytest.raises(InputError, match="a sweep chooses by dev queries"):
        sweep(file, [], out=str(tmp_path / "out"), store=str(tmp_path / "store"))


def test_a_finished_record_is_reported_again_and_not_run(swept: dict[str, Any], home: Path) -> None:
    plan = read_plan(swept["file"], [])
    folder, told = Folder.of(home / "out" / "trials"), []
    store = Store(Folder.of(home / "nowhere"), Cluster(plan.cfg.resources))
    record = run_trial(plan.trials[1], plan.trials[1].cfg, folder=folder, store=store, opened={}, report=told.append)
    assert told == record["reports"] == read_record(folder, plan.trials[1])["reports"] and len(told) == 3
    assert not (home / "nowhere").exists()


def _taken_up(plan: Plan, trial: Trial, home: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A trial's record after another call took it up, with `changes` made to it before."""
    shutil.copytree(home / "out" / "trials", tmp_path / "trials")
    folder = Folder.of(tmp_path / "trials")
    write_record(folder, trial, {**read_record(folder, trial), **changes})
    store = Store(Folder.of(home / "store"), Cluster(plan.cfg.resources))
    _Board(plan, folder, Tracking([], Folder.of(tmp_path), "toy"), store).of(trial)
    return read_record(folder, trial)


def test_a_stopped_trial_stays_stopped_only_for_the_judge_that_stopped_it(
    swept: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    plan = read_plan(swept["file"], [])
    judge = {"scheduler": {"kind": "fifo"}, "metric": METRIC}
    old = read_record(Folder.of(home / "out" / "trials"), plan.trials[1])
    left = {"status": "stopped", "student": None, "reports": old["reports"][:2]}
    for number, (by, expected) in enumerate(
        (
            (judge, "stopped"),
            ({**judge, "metric": "RR@10"}, "running"),
            ({**judge, "scheduler": {"kind": "asha", "grace": 10, "reduction": 3.0}}, "running"),
            (None, "running"),
        )
    ):
        found = _taken_up(plan, plan.trials[1], home, tmp_path / str(number), **left, judged_by=by)
        assert (found["status"], found["reports"]) == (expected, old["reports"][:2]), by


def test_what_asha_stopped_goes_on_under_fifo(swept: dict[str, Any], home: Path, tmp_path: Path) -> None:
    """The whole command: the stopped trial ends as it would have, and the one that finished is left alone."""
    shutil.copytree(home / "out", tmp_path / "out")
    folder, trial = Folder.of(tmp_path / "out" / "trials"), read_plan(swept["file"], []).trials[1]
    old = records(tmp_path / "out")
    whole = read_record(folder, trial)
    cut = {
        "status": "stopped",
        "student": None,
        "size": None,
        "reports": whole["reports"][:2],
        "dev": whole["reports"][1]["dev"],
    }
    write_record(folder, trial, {**whole, **cut, "judged_by": {"scheduler": {"kind": "asha"}, "metric": METRIC}})
    again = sweep(swept["file"], ["confirm=null"], out=str(tmp_path / "out"), store=str(home / "store"))
    assert again["trials"][1]["status"] == "finished" and again["trials"][1]["reports"][:2] == whole["reports"][:2]
    assert again["trials"][1]["dev"] == whole["dev"] and again["trials"][1]["student"] == whole["student"]
    found = records(tmp_path / "out")
    assert all(found[name] == old[name] for name in old if not name.startswith("001-"))


def test_records_of_other_data_or_of_a_store_without_the_student_begin_anew(
    swept: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    plan = read_plan(swept["file"], [])
    trial = plan.trials[1]
    kept = _taken_up(plan, trial, home, tmp_path / "kept")
    assert kept["status"] == "finished" and kept["data"] == swept["result"]["provenance"]["data_digest"]
    for number, changes in enumerate(({"data": "another"}, {"student": "train/0123456789abcdef"})):
        found = _taken_up(plan, trial, home, tmp_path / str(number), **changes)
        assert (found["status"], found["reports"], found["journal"]) == ("running", [], []), changes


def test_an_edited_corpus_and_an_emptied_store_are_seen_by_the_same_command(
    tmp_path: Path, toy: Path, toy_config: dict[str, Any]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy / "data", data)
    base = {"curriculum": [step(EXACT, 3)], "data": {**toy_config["data"], "path": str(data)}}
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [40]}}, base=base)
    where = {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    first = sweep(file, [], **where)
    shutil.rmtree(tmp_path / "store")
    assert [one["dev"] for one in sweep(file, [], **where)["trials"]] == [one["dev"] for one in first["trials"]]
    corpus = data / "corpus.jsonl"
    lines = corpus.read_text().splitlines()
    corpus.write_text("\n".join([json.dumps({**json.loads(lines[0]), "text": "something else"}), *lines[1:]]) + "\n")
    after = sweep(file, [], **where)
    assert all(one["student"] != old["student"] for one, old in zip(after["trials"], first["trials"], strict=True))


def test_names_of_a_finished_trial_follow_the_file(swept: dict[str, Any], home: Path, tmp_path: Path) -> None:
    plan = read_plan(swept["file"], [])
    old = {"label": "an old name", "point": {"gone": 1}, "point_number": 7, "flat": {"gone": 0}}
    found = _taken_up(plan, plan.trials[1], home, tmp_path, **old)
    assert {name: found[name] for name in old} == {name: getattr(plan.trials[1], name) for name in old}
    # A population's trial has values of its own by now.
    found = _taken_up(plan, plan.trials[1], home, tmp_path / "pbt", **old, history=[{"gone": 1}])
    assert (found["label"], found["point"], found["point_number"]) == ("an old name", {"gone": 1}, 1)


def test_a_claim_passes_on_when_its_holder_is_silent() -> None:
    leases = Leases(seconds=15)
    assert leases.take("home", "a", 0.0) and leases.take("home", "a", 1.0)
    assert not leases.take("home", "b", 10.0) and leases.take("other", "b", 10.0)
    leases.renew("a", 12.0)
    assert not leases.take("home", "b", 26.0)
    assert leases.take("home", "b", 27.5), "15 seconds without a sign of life"
    leases.release("home", "a")
    assert not leases.take("home", "c", 28.0), "it is not a's to release any more"
    leases.release("home", "b")
    assert leases.take("home", "c", 28.0)
