"""Before a teacher is paid for it is tried on dev; after a stage the student is, and what lost may be dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from raydrd.cli import main
from raydrd.flow.preflight import fitted_scale
from tests.conftest import write_config
from tests.recipes import LISTS, METRIC, SCALE, artifact_of, open_store, run_recipe, run_toy, settings, steps
from tests.worlds import oracle_cross_encoder

BASE = {"kind": "sampled", **LISTS}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the whole file."""
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    return settings(toy, "adam", lists=LISTS, dark=None, pacing=None, train=steps(2), loss=SCALE)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A teacher that puts everything the wrong way round."""
    folder = oracle_cross_encoder(tmp_path_factory.mktemp("wrong"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= -1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return {"kind": "cross_encoder", "model": str(folder), "max_length": 64}


def test_a_teacher_below_the_student_stops_the_run(
    values: dict[str, Any], wrong: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "stop.yaml", values | {"teacher": wrong})
    assert main(["run", config, "--out", str(tmp_path / "run"), "--store", str(tmp_path / "store")]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    line = err.rpartition("raydrd: ")[2].strip()
    assert line.startswith("preflight: teacher ") and line.endswith("or set preflight=warn to go on")
    assert "not better than the student, so it has nothing to teach; choose a stronger teacher" in line
    assert not (tmp_path / "store" / "train").exists() and not (tmp_path / "run" / "report.json").exists()
    # Only the trial was paid for: no training query has been scored.
    scored = [p.name for p in (tmp_path / "store" / "score_pairs").iterdir()]
    assert [open_store(tmp_path / "store").find("score_pairs", one).metrics["rows"] for one in scored] == [12]


def test_with_a_warning_the_run_goes_on_and_the_report_says_it(
    values: dict[str, Any], wrong: dict[str, Any], tmp_path: Path
) -> None:
    report = run_toy(tmp_path, values | {"teacher": wrong, "preflight": "warn"})
    (found,) = report["preflight"]
    assert not found["ok"] and "not better than the student" in found["verdict"] and found["metric"] == METRIC
    assert [row["system"] for row in found["rows"]] == ["BM25", "student before", wrong["model"]]
    for row in found["rows"]:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert found["rows"][1]["low"] < found["rows"][1]["value"] < found["rows"][1]["high"]
    assert found["rows"][2]["value"] < found["rows"][1]["value"] and (found["queries"], found["depth"]) == (12, 30)


def test_switched_off_nothing_is_tried(values: dict[str, Any], wrong: dict[str, Any], kept: Path) -> None:
    _, lab = run_recipe(values | {"teacher": wrong, "preflight": "off"}, kept)
    assert lab.preflights == [] and not [r.label for r in lab.store.journal if "preflight" in r.label]


def test_without_dev_queries_no_teacher_is_tried(
    values: dict[str, Any], wrong: dict[str, Any], toy: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"path": str(toy / "data"), "dev_split": None}
    _, lab = run_recipe(values | {"teacher": wrong, "data": data, "train": steps(2, 0.5)}, kept)
    assert lab.preflights == [] and "there are no dev queries, so no teacher is tried" in capsys.readouterr().out
    assert [(one["dev_before"], one["dev_after"], one["dropped"]) for one in lab.segments] == [(None, None, False)]


def test_a_good_teacher_is_tried_once_a_run(values: dict[str, Any], kept: Path) -> None:
    _, lab = run_recipe(values | {"rounds": 2}, kept)
    (found,) = lab.preflights
    assert found["ok"] and "surely better" in found["verdict"]
    teacher = artifact_of(lab, "teacher")
    assert found["identity"] == lab.teacher.identity and teacher.stage == "import_teacher"


# -- scale: fitted --------------------------------------------------------------------------------


def scales(lab: Any) -> tuple[float, float]:
    """What the training multiplied teacher scores by, and what its lists did."""
    trained, lists = (artifact_of(lab, f"{what} dark examples") for what in ("train", "lists of"))
    terms = trained.manifest["inputs"]["objective"]["fields"]["terms"]
    scale = next(t["fields"]["teacher_scale"] for t in terms if t["fields"]["kind"] == "distil")
    return scale, lists.manifest["inputs"]["scale"]


def test_a_fitted_scale_is_recorded_and_used(values: dict[str, Any], toy: Path, kept: Path) -> None:
    plain = values | {"teacher": {"kind": "bi_encoder", "model": str(toy / "deep")}, "preflight": "warn"}
    fitted = plain | {"teacher": {**plain["teacher"], "scale": "fitted"}}
    _, lab = run_recipe(fitted, kept)
    temperature = lab.preflights[0]["temperature"]
    assert 1e-2 < temperature < 1 and scales(lab) == pytest.approx((1 / temperature, 1 / temperature))
    # It needs the trial even where the verdict is not asked for, and nobody else's scale changes.
    _, lab = run_recipe(fitted | {"preflight": "off"}, kept)
    assert scales(lab) == pytest.approx((1 / temperature, 1 / temperature))
    _, lab = run_recipe(plain, kept)
    assert scales(lab) == (1.0, 1.0) and lab.preflights[0]["temperature"] == temperature


def test_ends_of_the_range_are_no_fitted_scale(values: dict[str, Any], wrong: dict[str, Any], kept: Path) -> None:
    useless = values | {"teacher": {**wrong, "scale": "fitted"}, "preflight": "warn"}
    _, lab = run_recipe(useless, kept)
    (found,) = lab.preflights
    assert found["temperature"] == pytest.approx(1e3, rel=0.01) and scales(lab) == (1.0, 1.0)
    assert "scale: fitted finds none, since its scores say no more of the dev labels than none would" in found["scale"]
    # The oracle puts all relevant passages above all others: the labels ask for an endless scale.
    _, lab = run_recipe(values | {"teacher": {**values["teacher"], "scale": "fitted"}}, kept)
    (found,) = lab.preflights
    assert found["temperature"] == pytest.approx(1e-3, rel=0.01) and scales(lab) == (1.0, 1.0)
    assert "scale: fitted finds none, since the teacher sets all relevant dev passages apart" in found["scale"]


@pytest.mark.parametrize(("temperature", "scale"), [(0.05, 20.0), (4.0, 0.25), (None, 1.0), (1e-3, 1.0), (999.9999999, 1.0)])
def test_fitted_scale(temperature: float | None, scale: float) -> None:
    found, why = fitted_scale(temperature)
    assert found == pytest.approx(scale) and (why is None) == (scale != 1.0)


def test_one_model_under_two_scales_is_fitted_for_the_one_that_asks(values: dict[str, Any], toy: Path, kept: Path) -> None:
    plain = {"kind": "bi_encoder", "model": str(toy / "deep")}
    turns = [{"teacher": plain, "lists": LISTS, "train": steps(1)}, {"lists": LISTS, "train": steps(1)}]
    fitted = {**plain, "scale": "fitted"}
    _, lab = run_recipe(settings(toy, "prod", teacher=fitted, progress=turns, loss=SCALE, preflight="warn"), kept)
    assert len(lab.preflights) == 2 and list(lab.scales.values()) == [pytest.approx(1 / lab.preflights[1]["temperature"])]


# -- the dev gate ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gated(toy: Path) -> dict[str, Any]:
    """A good step, one that breaks the student, and a good one again."""
    good, bad = steps(20), steps(4, 1.0, warmup_ratio=0.0)
    turns = [{"lists": BASE, "terms": [{"kind": "distil"}], "train": train} for train in (good, bad, steps(2, 1.0e-4))]
    return settings(toy, "mix", steps=turns, **SCALE)


def test_a_stage_that_loses_on_dev_is_dropped(
    gated: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_toy(tmp_path, gated | {"keep": "best"})
    first, second, third = report["curve"]["segments"]
    assert [segment["dropped"] for segment in (first, second)] == [False, True]
    assert second["dev_after"][METRIC] < first["dev_after"][METRIC] - 0.2
    assert "step 2: dev nDCG@10 fell from" in capsys.readouterr().out
    # What goes on is the student of before: the third step starts from the first one's.
    ids = {s["label"]: s["id"] for s in report["stages"] if s["name"] == "train"}
    last = open_store(report["store"]).find("train", ids["train step 3"])
    assert last.manifest["inputs"]["start"]["artifact"] == f"train/{ids['train step 1']}"
    assert third["dev_before"] == first["dev_after"]
    expected = ids["train step 1"] if third["dropped"] else ids["train step 3"]
    assert report["artifacts"]["student"] == f"train/{expected}"

    kept, lab = run_recipe(gated | {"keep": "last"}, Path(report["store"]))
    assert [segment["dropped"] for segment in lab.segments] == [False, False, False]
    start = artifact_of(lab, "train step 3").manifest["inputs"]["start"]["artifact"]
    assert start == f"train/{ids['train step 2']}" and kept.id not in ids.values()


def test_a_last_stage_that_is_dropped_leaves_the_student_of_before(gated: dict[str, Any], kept: Path) -> None:
    shorter = gated | {"steps": gated["steps"][:2], "keep": "best"}
    student, lab = run_recipe(shorter, kept)
    assert student.id == artifact_of(lab, "train step 1").id and lab.segments[-1]["dropped"]
    assert lab.segments[-1]["dev_kept"] == lab.segments[0]["dev_after"]


def test_a_pairwise_teacher_is_tried_on_labelled_pairs(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = {
        "pairwise": {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64},
        "pairs": {"top_k": 10, "window": 3, "pairs": 4},
        "lists": {"size": 10},
        "rounds": [steps(2)],
        "loss": SCALE,
    }
    values = settings(toy, "pairdistill", **pairs)
    report = run_toy(tmp_path, values | {"preflight": "warn"})
    tried = report["preflight"][-1]
    assert tried["metric"] == "pairs right" and tried["teacher"].endswith("reranker")
    (row,) = tried["rows"]
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert tried["ok"] == (row["value"] > 0.5)
    # A random model: whichever way it leans, stop obeys the same verdict.
    config = write_config(tmp_path / "stop.yaml", values | {"preflight": "stop"})
    code = main(["run", config, "--out", str(tmp_path / "again"), "--store", str(tmp_path / "store2")])
    assert code == (0 if tried["ok"] else 2)
    assert ("it has nothing to teach" in capsys.readouterr().err) == (not tried["ok"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "best", "data": {"dev_split": None}}, "keep: best chooses by dev queries"),
        ({"warm_up": [{"lists": {"negatives": 1, "pool": 5}, "train": steps(1)}]}, "no teacher has scored yet"),
        ({"queries": {"labelled": 5}, "data": {"run": "runs.tsv"}}, "queries.labelled: data.run and data.scores"),
        ({"teacher": {"kind": "scores"}, "data": {"scores": "s.parquet"}, "dark": {"built": 4}}, "cannot score dark examples"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_model_runs(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    changed = {**values, **changes, "data": {**values["data"], **changes.get("data", {})}}
    config = write_config(tmp_path / "refused.yaml", changed)
    assert main(["run", config, "--out", str(tmp_path / "run"), "--store", str(tmp_path / "store")]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "store" / "embed").exists()
