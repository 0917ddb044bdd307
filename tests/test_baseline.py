"""The sentence-transformers baseline: the same data and the same loss as the run it stands beside, measured the same way."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raydrd.benchmark import margins
from raydrd.benchmark.baseline import RECIPE, main, trained
from raydrd.benchmark.margins import Rows, Taken, places, take, training_rows
from raydrd.cli import main as raydrd
from raydrd.errors import InputError
from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.spine.storage import Folder
from raydrd.stages.adopt import model_folder
from raydrd.training.plan import TrainConfig, batch_of
from tests.recipes import LISTS, METRIC, SCALE, run_toy, settings, steps
from tests.worlds import toy_collection

needs_trainer = "sentence-transformers' Trainer needs it: pip install 'raydrd[baseline]'"
pytest.importorskip("datasets", reason=needs_trainer)
pytest.importorskip("accelerate", reason=needs_trainer)

NAN = float("nan")


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished toy run of margin_mse; a teacher scale of 2 stands between its scores and what is learnt."""
    values = settings(toy, "margin_mse", lists=LISTS, loss=SCALE, train=steps(30))
    values["teacher"]["scale"] = 2.0
    return run_toy(tmp_path_factory.mktemp("margins"), values)


@pytest.fixture(scope="module")
def taken(finished: dict[str, Any]) -> Taken:
    return take(Folder.of(finished["folder"]))


@pytest.fixture(scope="module")
def made(finished: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The baseline of that run: its report, with its folder beside it."""
    out = tmp_path_factory.mktemp("baseline") / "plain"
    assert main([str(finished["folder"]), "--out", str(out)]) == 0
    return {**json.loads((out / "report.json").read_text()), "folder": out}


def library_loss(taken: Taken, rows: Rows, numbers: list[int]) -> float:
    """What the library's loss says of some rows before training, the texts encoded by its own methods."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss

    model = SentenceTransformer(str(model_folder(taken.start).local_folder()), device="cpu")
    vectors = [
        (model.encode_query if name == "query" else model.encode_document)([texts[n] for n in numbers], convert_to_tensor=True)
        for name, texts in rows.columns.items()
    ]
    labels = torch.tensor([rows.margins[n] for n in numbers])
    return float(MarginMSELoss(model).compute_loss_from_embeddings(vectors, labels))


# -- the same data, the same loss -------------------------------------------------------------------


def test_the_library_starts_at_the_loss_of_the_runs_own_first_step(finished: dict[str, Any], taken: Taken) -> None:
    """Student, texts, their order and the labels are the run's: else its first loss would be another."""
    rows = training_rows(taken, factor=taken.teacher_scale / taken.score_scale)
    assert (taken.teacher_scale, taken.score_scale, rows.left_out, len(rows.margins)) == (2.0, 20.0, 0, 24)
    first = batch_of(0, seed=taken.config.seed, examples=24, size=8).tolist()
    label = next(s for s in finished["stages"] if s["name"] == "train")
    home = Folder.of(finished["store"]) / "train" / label["id"]
    curve = (home / home.read_json("manifest.json")["attempt"]).read_json("curve.json")
    assert 20.0**2 * library_loss(taken, rows, first) == pytest.approx(curve[0][1], rel=1e-4)


def test_raw_labels_are_the_teachers_own_margins(taken: Taken) -> None:
    raw, scaled = training_rows(taken, factor=1.0), training_rows(taken, factor=0.1)
    assert raw.columns == scaled.columns
    assert np.allclose(np.array(raw.margins) * 0.1, scaled.margins)
    assert np.abs(raw.margins).max() > 2  # two cosines are never so far apart


def test_the_run_says_how_it_was_trained(taken: Taken) -> None:
    assert taken.config == TrainConfig(**steps(30))
    assert (taken.updates, taken.warm_up) == (30, 3)
    assert taken.start.id != taken.lists.id and taken.start.stage == "adopt"


@pytest.mark.parametrize(
    ("flags", "teacher", "expected"),
    [
        ([POSITIVE, 0, 0], [1.0, 3.0, 2.0], [0, 1, 2]),  # the judged positive, not the teacher's best
        ([0, 0, POSITIVE], [1.0, 3.0, 2.0], [2, 0, 1]),
        ([0, 0, 0], [1.0, 3.0, 3.0], [1, 0, 2]),  # no label: the teacher's first best
        ([POSITIVE, 0, 0], [1.0, NAN, 2.0], [0, 2]),  # nothing is known of the second
        ([POSITIVE, 0, 0], [NAN, 3.0, 2.0], []),  # no margin without the positive's score
        ([POSITIVE, DARK, SUSPECT], [1.0, 3.0, 2.0], [0, 2]),  # written for the query; perhaps a positive
        ([0, DARK], [1.0, 3.0], [0]),
        ([], [], []),
    ],
)
def test_places_are_those_that_the_objective_reads(flags: list[int], teacher: list[float], expected: list[int]) -> None:
    assert places(flags, teacher) == expected


def test_lists_shorter_than_the_longest_are_left_out(taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third list loses its last passage: the library could not stack its margins with the others'."""
    asked: list[int] = []

    def cut(flags: list[int], teacher: list[float]) -> list[int]:
        asked.append(len(asked))
        found = places(flags, teacher)
        return found if len(asked) % 3 else found[:-1]

    whole = training_rows(taken, factor=1.0)
    monkeypatch.setattr(margins, "places", cut)
    rows = training_rows(taken, factor=1.0)
    kept = [n for n in range(24) if (n + 1) % 3]
    assert rows.left_out == 8 and rows.margins == [whole.margins[n] for n in kept]
    assert rows.columns == {name: [texts[n] for n in kept] for name, texts in whole.columns.items()}
    monkeypatch.setattr(margins, "places", lambda flags, teacher: [0])
    with pytest.raises(InputError, match="nothing to learn"):
        training_rows(taken, factor=1.0)


# -- end to end -------------------------------------------------------------------------------------


def test_its_folder_is_compared_with_the_run(
    finished: dict[str, Any], made: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert raydrd(["compare", str(finished["folder"]), str(made["folder"]), "--samples", "200", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["label"] for s in found["systems"]] == ["run", "plain"]
    assert found["metrics"] == ["nDCG@10", "RR@10", "R@100"] and found["queries"] == 12
    assert {s["data_digest"] for s in found["systems"]} == {finished["provenance"]["data_digest"]}
    for metric in found["metrics"]:
        cell, told = found["systems"][1]["metrics"][metric], made["systems"]["student"]
        assert cell["mean"] == pytest.approx(told[metric])
        assert [cell["low"], cell["high"]] == pytest.approx(told["intervals"][metric])
    kept, own = (pq.read_table(one["folder"] / "per_query.parquet") for one in (finished, made))
    assert own.column_names == [
        n for n in kept.column_names if n.partition(" ")[0] not in ("bm25", "teacher", "student_before")
    ]
    for name in ("query_id", "query", "query_words", "overlap", "judged"):
        assert own[name].equals(kept[name])


def test_its_metrics_are_those_of_the_model_that_it_leaves(made: dict[str, Any], tmp_path: Path) -> None:
    """Measured again from the folder alone: encoded anew, sorted by numpy, nDCG@10 by its formula."""
    from sentence_transformers import SentenceTransformer

    world = toy_collection(tmp_path)
    model = SentenceTransformer(str(made["folder"] / "model"), device="cpu")
    ids = list(world.passages)
    passages = model.encode(list(world.passages.values()))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, 6))  # five passages are relevant, all alike
    expected = {}
    for query, relevant in world.qrels["test"].items():
        order = np.argsort(-(passages @ model.encode(world.queries[query])), kind="stable")[:10]
        gains = [1 / math.log2(rank + 1) for rank, row in enumerate(order, 1) if ids[row] in relevant]
        expected[query] = sum(gains) / ideal
    rows = pq.read_table(made["folder"] / "per_query.parquet").to_pylist()
    assert {row["query_id"]: pytest.approx(row[f"student {METRIC}"]) for row in rows} == expected
    assert made["systems"]["student"][METRIC] == pytest.approx(np.mean(list(expected.values())))


def test_it_learns_and_says_with_what(finished: dict[str, Any], made: dict[str, Any]) -> None:
    assert made["systems"]["student"][METRIC] > finished["systems"]["student_before"][METRIC] + 0.05
    assert made["config"]["train"] == {
        "learning_rate": 3e-3,
        "train_batch_size": 8,
        "max_steps": 30,
        "warmup_steps": 3,
        "seed": 4680,
    }
    assert made["recipe"] == RECIPE and made["config"]["label_factor"] == pytest.approx(0.1)
    assert {"sentence-transformers", "datasets", "accelerate"} <= set(made["provenance"]["versions"])
    assert not list(made["folder"].rglob("checkpoint*"))


def test_the_same_command_gives_the_same_and_raw_labels_another(
    finished: dict[str, Any], made: dict[str, Any], tmp_path: Path
) -> None:
    """A baseline may be written again over itself; the run's store may have moved."""
    moved, again, first = tmp_path / "store", tmp_path / "again", pq.read_table(made["folder"] / "per_query.parquet")
    shutil.copytree(finished["store"], moved)
    assert main([str(finished["folder"]), "--out", str(again), "--store", str(moved)]) == 0
    assert pq.read_table(again / "per_query.parquet").equals(first)
    assert main([str(finished["folder"]), "--out", str(again), "--raw"]) == 0
    assert not pq.read_table(again / "per_query.parquet").equals(first)
    assert json.loads((again / "report.json").read_text())["config"]["label_factor"] == 1.0


def test_two_towers_and_their_prompts_are_trained_as_such(toy: Path, tmp_path: Path) -> None:
    """One update over all 24 lists: its loss is that of the texts with their prompts, and it moves both towers."""
    from sentence_transformers import SentenceTransformer

    values = settings(toy, "margin_mse", lists=LISTS, loss=SCALE, train=steps(1, train_batch_size=24))
    values["student"] |= {"towers": "separate", "query_prompt": "how many ", "passage_prompt": "some old "}
    taken = take(Folder.of(run_toy(tmp_path, values)["folder"]))
    rows = training_rows(taken, factor=taken.teacher_scale / taken.score_scale)
    model, loss = trained(taken, rows)
    assert loss == pytest.approx(library_loss(taken, rows, list(range(24))), rel=1e-4)
    before = SentenceTransformer(str(model_folder(taken.start).local_folder()), device="cpu").state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {side for side in ("query", "document") for name in moved if f".{side}." in name} == {"query", "document"}


# -- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("recipe", "a run of cldrd; name a run of margin_mse"),
        ("store", "no train/"),
        ("nothing", "no report.json here"),
        ("system", "a system of a run; write the run folder alone"),
        ("itself", "the run itself; name another folder"),
        ("taken", "what is in it is no baseline and would be lost"),
        ("groups", "train.train_group_size: the library reads whole lists"),
        ("package", "Trainer needs datasets; pip install 'raydrd[baseline]'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    case: str,
    message: str,
    finished: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, words = str(finished["folder"]), ["--out", str(tmp_path / "out")]
    match case:
        case "recipe":
            run = str(tmp_path)
            (tmp_path / "report.json").write_text(json.dumps({"recipe": "cldrd"}))
        case "store":
            words += ["--store", str(tmp_path / "none")]
        case "nothing":
            run = str(tmp_path)
        case "system":
            run += ":teacher"
        case "itself":
            words = ["--out", run]
        case "taken":
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.txt").write_text("mine")
        case "groups":
            changed = TrainConfig(**steps(30), train_group_size=4)
            monkeypatch.setattr(margins.TrainConfig, "model_validate", lambda fields: changed)
        case "package":
            monkeypatch.setitem(sys.modules, "datasets", None)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([run, *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("baseline: ") and message in said.err and said.err.count("\n") == 1
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
