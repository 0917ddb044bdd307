"""A plan knows a run before it is made: its stages by their ids, their rows, their time; and what cannot fit."""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.cli import main
from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.planning.costs import POOL, TRAINING, seconds_of
from raydrd.planning.machine import Machine
from raydrd.planning.main import refuse
from raydrd.report import forecast
from raydrd.report.page import render
from raydrd.session import plan, read_config, run
from tests.conftest import write_config
from tests.recipes import LISTS, SCALE, settings, steps

PAIR_SECONDS = 0.002


def planned(config: str, store: Path, *changes: str, price: float | None = None) -> tuple[Any, dict[str, Any]]:
    return plan(config, list(changes), store=str(store), gpus=None, price=price, seconds=2.0)


@pytest.fixture(scope="module")
def toy_plan(toy_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The toy run planned on an empty store, by a teacher that takes 2 ms a pair; with `cfg` and `store` beside it."""
    from raydrd.stages.scorers import CrossEncoderScorer

    def slow(self: Any, query_rows: Any, *doc_rows: Any) -> Any:
        time.sleep(PAIR_SECONDS * len(query_rows))
        return np.zeros(len(query_rows), dtype=np.float32)

    store = tmp_path_factory.mktemp("plan") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrossEncoderScorer, "scores", slow)
        cfg, found = planned(toy_run["config"], store, price=3.6)
    return {**found, "cfg": cfg, "store": store}


def by_label(found: dict[str, Any], label: str) -> dict[str, Any]:
    return next(one for one in found["stages"] if one["label"] == label)


def test_every_stage_of_the_run_is_known_by_its_id_and_its_rows(toy_plan: dict[str, Any], toy_run: dict[str, Any]) -> None:
    foreseen = {one["id"]: (one["label"], one["rows"], one["unit"]) for one in toy_plan["stages"]}
    real = {one["id"]: (one["label"], one["rows"], one["unit"]) for one in toy_run["stages"]}
    # The run counts the texts that it compared at the export; a plan counts the model.
    differ = {real[id_][0] for id_ in real if foreseen.get(id_) != real[id_]}
    assert set(foreseen) == set(real) and differ <= {"verify export"}
    assert not toy_plan["unmeasured"]


def test_a_stage_takes_its_units_at_the_measured_rate(toy_plan: dict[str, Any]) -> None:
    scored = by_label(toy_plan, "score train (teacher)")
    assert scored["rate"] == pytest.approx(1 / PAIR_SECONDS, rel=0.25) and scored["rate_unit"] == "pairs"
    assert scored["seconds"] >= 24 * 60 * PAIR_SECONDS and scored["where"] == "here"
    # Of the test queries' candidates half as many pairs at the same rate: the model's start is in both.
    tested = by_label(toy_plan, "score test (teacher)")
    assert scored["seconds"] - tested["seconds"] == pytest.approx(12 * 60 / scored["rate"], rel=0.01)
    one, two = (by_label(toy_plan, f"train step {n}") for n in ("1: 5/5/10", "2: 10/5/5"))
    assert (one["rows"], two["rows"]) == (20, 10) and one["rate_unit"] == "updates"


def test_disk_is_what_the_run_wrote(toy_plan: dict[str, Any], toy_run: dict[str, Any]) -> None:
    for label in ("embed passages (student)", "tokenize corpus"):
        one = by_label(toy_plan, label)
        home = Path(toy_run["store"]) / one["name"] / one["id"]
        written = sum(json.loads((home / "manifest.json").read_text())["files"].values())
        assert one["disk"] <= written <= one["disk"] + 1200  # what does not grow with the rows: Arrow's own header


def test_the_sum_is_the_start_and_the_stages_and_has_its_price(toy_plan: dict[str, Any]) -> None:
    total = sum(one["seconds"] or 0 for one in toy_plan["stages"]) + sum(toy_plan["start"].values())
    assert toy_plan["seconds"] == pytest.approx(total, abs=0.1)
    assert toy_plan["cost"] == pytest.approx(total * 3.6 / 3600, rel=0.01)
    assert toy_plan["start"]["ray"] == 0.0, "nothing of this run starts Ray"
    shown = forecast.table(toy_plan)
    assert "score train (teacher)" in shown and "24 queries" in shown and "cost" in shown.splitlines()[0]
    assert max(map(len, shown.splitlines())) <= 100 and shown.isascii()


def test_what_the_store_holds_is_not_counted(toy_run: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    import raydrd.stages.embed as module

    monkeypatch.setattr(module, "Embedder", None)  # no model is probed for a run that has nothing left to do
    shutil.copytree(toy_run["store"], tmp_path / "store")
    _, found = planned(toy_run["config"], tmp_path / "store")
    assert all(one["reused"] and one["seconds"] is None for one in found["stages"])
    assert found["seconds"] == pytest.approx(found["start"]["open"]) and found["disk"] == 0
    assert "reused" in forecast.table(found)


def test_the_run_tells_how_far_off_the_forecast_was(
    toy_plan: dict[str, Any], toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(toy_run["store"], store)
    shutil.copytree(toy_plan["store"] / "forecasts", store / "forecasts")
    shutil.rmtree(store / "evaluate")
    shutil.rmtree(store / "build_index")
    capsys.readouterr()
    assert main(["run", toy_run["config"], "--out", str(tmp_path / "run"), "--store", str(store)]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "report.json").read_text())["forecast"]
    labels = [one["label"] for one in found["stages"]]
    assert "build index" in labels and "evaluate after" in labels and not [one for one in labels if one.startswith("train")]
    foreseen = {one["label"]: one["seconds"] for one in toy_plan["stages"]}
    start = toy_plan["start"]["open"] + toy_plan["start"]["libraries"]
    assert found["forecast"] == pytest.approx(start + sum(foreseen[one] for one in labels), abs=0.2)
    line = forecast.sentence(found)
    assert line.startswith("forecast ") and " took " in line and line in said
    assert line.removeprefix("f") in (tmp_path / "run" / "report.html").read_text()


def test_a_run_without_a_plan_says_nothing_of_one(toy_run: dict[str, Any]) -> None:
    assert "forecast" not in toy_run and "orecast" not in render(toy_run)


def test_a_stage_is_known_again_by_its_label_where_the_data_decided_its_input() -> None:
    stage = {"name": "train", "label": "train step 1", "seconds": 90.0, "where": "training"}
    found = {"created": "", "start": {"open": 5.0, "libraries": 1.0, "ray": 4.0}, "stages": [{**stage, "id": "a"}]}
    ran = {"name": "train", "label": "train step 1", "id": "b", "reused": False, "seconds": 70.0}
    other = {**ran, "label": "never seen", "id": "c"}
    made = forecast.compared(found, [ran, other], 80.0)
    assert made is not None and made["forecast"] == 100.0 and made["off"] == 0.25 and made["unforeseen"] == ["never seen"]
    assert forecast.sentence(made) == "forecast 100 s, took 80 s (+25 %); not foreseen: 1 stage"
    assert forecast.compared(found, [{**ran, "reused": True}], 8.0) is None


# -- how rates scale ---------------------------------------------------------------------------------


def test_work_is_divided_by_the_workers_after_their_start() -> None:
    one, two = (seconds_of(600.0, 2.0, where="actors", workers=n, shards=64) for n in (1, 2))
    assert (one, two) == (POOL + 602.0, POOL + 302.0)
    assert seconds_of(600.0, 2.0, where="actors", workers=2, shards=3) == POOL + 2 + 400, "a third shard waits for its turn"
    assert seconds_of(600.0, 2.0, where="training", workers=4, shards=1) == TRAINING + 152.0
    assert seconds_of(600.0, 2.0, where="here", workers=1, shards=9) == 602.0


def test_gpus_are_taken_in_nodes_like_this_one() -> None:
    node = Machine(cores=8, memory=1, gpus=2, disk=None)
    assert node.pool(Resources(), 100).size == 2
    assert Machine(cores=8, memory=1, gpus=8, disk=None, nodes=4).pool(Resources(), 100).size == 8
    assert Machine(cores=8, memory=1, gpus=8, disk=None, nodes=4).pool(Resources(num_workers=3), 100).size == 3


def test_the_key_of_a_forecast_leaves_out_how_the_run_is_carried_out(toy_run: dict[str, Any]) -> None:
    def key(*changes: str) -> str:
        return forecast.key_of(read_config(toy_run["config"], list(changes)).model_dump(mode="json"))

    assert key() == key("resources.num_workers=7") == key("name=other") != key("candidates.depth=30")


# -- what cannot fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "change", "machine", "message"),
    [
        ("build index", {"memory": 10**12}, {}, "memory: 'build index' needs 1.0 TB a worker, .* set index=IVF4096,PQ48"),
        ("score train (teacher)", {"memory": 20 * 10**9, "workers": 2}, {}, "beside 1 more; set resources.num_workers=1$"),
        ("score train (teacher)", {"memory": 40 * 10**9}, {}, "set resources.tokens_per_batch=1024$"),
        ("train step 1: 5/5/10", {"memory": 40 * 10**9}, {}, "set resources.per_device_train_batch_size=4$"),
        (
            "search train (student)",
            {"disk": 10**12},
            {},
            "lower candidates.depth .it is 60., or name a larger place by --store",
        ),
        ("score train (teacher)", {"disk": 10**12}, {}, "disk: the run writes 1.0 TB, .* lower candidates.scored"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_setting_that_would(
    toy_plan: dict[str, Any], label: str, change: dict[str, int], machine: dict[str, int], message: str
) -> None:
    found = {**toy_plan, "stages": copy.deepcopy(toy_plan["stages"])}
    found["machine"] = {**toy_plan["machine"], "memory": 32 * 10**9, "disk": 10**11, **machine}
    refuse(toy_plan["cfg"], found)  # as it is it fits
    by_label(found, label).update(change)
    found["disk"] = sum(one["disk"] for one in found["stages"])
    with pytest.raises(InputError, match=message):
        refuse(toy_plan["cfg"], found)


def test_the_command_refuses_in_one_line(
    toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    shutil.copytree(toy_run["store"], tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "build_index")
    command = ["plan", toy_run["config"], "--store", str(tmp_path / "store"), "--seconds", "0.2"]
    assert main([*command, "--price", "-1"]) == 2
    assert main([*command, "candidates.depth=1"]) == 2
    assert main(["plan", str(tmp_path / "no.yaml")]) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main([*command, "--gpus", "2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 4 and all(line.startswith("raydrd: ") for line in said)
    assert said[0].endswith("--price -1: write 0 or more") and "there is no GPU here" in said[3]
    monkeypatch.setattr("raydrd.planning.machine.free_disk", lambda root: 10)
    assert main([*command, "--json", str(tmp_path / "plan.json")]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("raydrd: disk: the run writes") and err.count("\n") == 1
    assert "build index" in out and json.loads((tmp_path / "plan.json").read_text())["disk"] > 10


# -- every part of every recipe ------------------------------------------------------------------------


def test_dark_examples_compared_pairs_filter_and_a_trained_teacher_are_measured(toy: Path, tmp_path: Path) -> None:
    """One mix of everything that stages are fed with, planned and then run: the same stages, the same rows."""
    teacher = {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64, "train": {"train": steps(2)}}
    step = {
        "lists": {"kind": "sampled", **LISTS}, "dark": {}, "pairs": {}, "filter": {},
        "terms": [{"kind": "distil", "suspects": "mask"}, {"kind": "pairwise"}], "train": steps(2),
    }  # fmt: skip
    values = settings(toy, "mix", steps=[step], pairwise=teacher, preflight="warn", **SCALE)
    values["evaluation"] |= {"preflight_queries": 4, "preflight_depth": 8}
    config = write_config(tmp_path / "mix.yaml", values)
    _, found = planned(config, tmp_path / "store")
    assert not found["unmeasured"]
    report = run(config, [], out=str(tmp_path / "run"), store=str(tmp_path / "store"))
    assert report["forecast"]["unforeseen"] == []
    foreseen = {one["id"]: one["rows"] for one in found["stages"]}
    rows = {one["id"]: one["rows"] for one in report["stages"] if one["name"] != "verify_export"}
    assert {id_: foreseen[id_] for id_ in rows} == rows
