"""A run up to a phase is the beginning of the run: it ends where it says, and nothing of it is made again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydrd.cli import main, parser
from raydrd.config import Resources, validate
from raydrd.recipes import RECIPES
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.until import PHASES, PartStore, run_part
from tests.conftest import write_config
from tests.recipes import LISTS, SCALE, run_recipe, settings, steps

PREPARING = {"load", "adopt", "import_teacher", "sample_dev", "sample_queries", "make_queries", "tokenize"}
OWN = ("train recover", "train warm-up 1")  # what must be learnt before the first candidates can be found
SHORT = {"query_max_len": 20, "passage_max_len": 40}


def cldrd(toy: Path) -> dict[str, Any]:
    """A cut student that recovers and is warmed up before it mines."""
    small = {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10}
    return settings(
        toy, "cldrd", student={"model": str(toy / "student"), "layers": 1}, recover={"train": steps(2)},
        warm_up=[{"train": steps(2), "sources": ["bm25", "student"]}], queries={"labelled": 16, "count": 8},
        curriculum=[{"lists": small, "train": steps(2)}, {"lists": small | {"hard": 0}, "train": steps(2)}], loss=SCALE,
    )  # fmt: skip


def ready_scores(toy: Path) -> dict[str, Any]:
    """Nothing to mine and nothing to score: the scores are a file."""
    rows: dict[str, list[Any]] = {"query_id": [], "doc_id": [], "score": []}
    for subject in range(12):  # two train queries each, with their five passages and three of the next subject
        for query in (4 * subject, 4 * subject + 1):
            for doc in range(8):
                for name, value in zip(rows, (f"q{query:02d}", f"d{(5 * subject + doc) % 60:02d}", float(-doc)), strict=True):
                    rows[name].append(value)
    pq.write_table(pa.table(rows), toy / "given.parquet")
    values = settings(toy, "margin_mse", lists=LISTS | {"negatives": 2}, train=steps(2), loss=SCALE)
    return values | {"teacher": {"kind": "scores"}, "data": {"path": str(toy / "data"), "scores": str(toy / "given.parquet")}}


def ensemble(toy: Path) -> dict[str, Any]:
    members = [
        {"kind": "cross_encoder", "model": str(toy / "teacher"), "max_length": 64},
        {"kind": "bi_encoder", "model": str(toy / "deep")},
    ]
    values = settings(toy, "margin_mse", lists=LISTS, train=steps(2), loss=SCALE, preflight="off")
    return values | {"teacher": {"kind": "ensemble", "members": members}}


def adam(toy: Path) -> dict[str, Any]:
    return settings(toy, "adam", lists=LISTS, dark={"built": 4, "reinforced": 2, "noisy": 2}, train=steps(2), loss=SCALE)


def md2pr(toy: Path) -> dict[str, Any]:
    teacher = {"kind": "cross_encoder", "model": str(toy / "student"), "max_length": 64, "train": {"train": steps(2)}}
    student = {"model": str(toy / "student"), **SHORT}
    words = {"weight": 0.5, "projection": 16}
    return settings(
        toy, "md2pr", teacher=teacher, student=student, lists=LISTS, words=words, rounds=[steps(2), steps(2)], loss=SCALE,
        preflight="warn",
    )  # fmt: skip


def pairdistill(toy: Path) -> dict[str, Any]:
    pairwise = {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "train": {"train": steps(2)}}
    return settings(
        toy, "pairdistill", candidates={"sources": ["student"], "depth": 25}, pairwise=pairwise, lists={"size": 12},
        pairs={"top_k": 10, "window": 3, "pairs": 6}, rounds=[steps(2), steps(2)], loss=SCALE, preflight="warn",
    )  # fmt: skip


def prod(toy: Path) -> dict[str, Any]:
    bi = {"kind": "bi_encoder", "model": str(toy / "deep"), "train": {"train": steps(2)}}
    lists = LISTS | {"unlabelled": False}
    progress = [{"teacher": bi, "lists": lists, "train": steps(2)}, {"mined_by": "teacher", "lists": lists, "train": steps(2)}]
    last = {"train": steps(2), "select": {"student_from": 1, "student_to": 60, "teacher_to": 60}}
    return settings(toy, "prod", progress=progress, data_progressive=last, loss=SCALE, preflight="warn")


def mix(toy: Path) -> dict[str, Any]:
    step = {
        "lists": {"kind": "graded", "graded": 5, "hard": 3, "rest": 3, "hard_until": 20},
        "dark": {"built": 4, "reinforced": 2, "noisy": 2},
        "pairs": {"top_k": 10, "window": 3, "pairs": 4},
        "filter": {"keep": 3},
        "terms": [{"kind": "distil"}, {"kind": "pairwise"}, {"kind": "contrastive"}],
        "train": steps(2),
    }
    again = {"mine": True, "lists": {"kind": "sampled", **LISTS}, "terms": [{"kind": "contrastive"}], "train": steps(2)}
    pairwise = {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64}
    return settings(toy, "mix", pairwise=pairwise, steps=[step, again], preflight="warn", **SCALE)


def part(values: dict[str, Any], folder: Path, phase: str) -> tuple[PartStore, str]:
    cfg = validate(RECIPES[values["recipe"]].Config, values, "toy")
    store = PartStore(Folder.of(folder), Cluster(Resources(ray="off", train_workers=0)), until=phase)
    return store, run_part(cfg, store)


def finished(folder: Path) -> set[str]:
    """Names of the stages that the store holds something of."""
    return {path.parts[-3] for path in folder.glob("*/*/manifest.json")}


def learnt(store: PartStore) -> list[str]:
    """The student's trainings, by label (a teacher's has the path of its model)."""
    return [r.label for r in store.journal if r.name in ("train", "imitate") and not r.label.startswith("train teacher /")]


@pytest.mark.parametrize("made", [cldrd, ready_scores, ensemble, adam, md2pr, pairdistill, prod, mix])
def test_each_part_ends_where_it_says_and_the_run_goes_on_from_there(
    made: Callable[[Path], dict[str, Any]], toy: Path, tmp_path: Path
) -> None:
    values, folder = made(toy), tmp_path / "store"
    given = values["teacher"]["kind"] == "scores"
    ids: list[str] = []

    store, following = part(values, folder, "prepare")
    assert finished(folder) <= PREPARING and {"load", "tokenize"} <= finished(folder)
    assert {r.label for r in store.journal} >= {"tokenize corpus", "tokenize queries/train"}
    ids += [r.id for r in store.journal]

    store, following = part(values, folder, "embed")
    scoring = {"score_pairs", "score_vectors", "score_duels", "take_scores", "blend", "train_reranker", "rerank"}
    assert not finished(folder) & scoring and not any(r.label.startswith("train teacher /") for r in store.journal)
    assert given or any(r.label.startswith("search train (") for r in store.journal)
    assert [label for label in learnt(store) if label not in OWN] == []
    assert learnt(store) == [label for label, field in zip(OWN, ("recover", "warm_up"), strict=True) if values.get(field)]
    assert following.startswith(("take ready-made" if given else "lists for", "sample preflight", "score train"))
    ids += [r.id for r in store.journal]

    store, following = part(values, folder, "score")
    assert finished(folder) & {"score_pairs", "score_vectors", "take_scores"}
    assert ("score_duels" in finished(folder)) == ("pairwise" in values)
    assert ("write_dark" in finished(folder)) == (made in (adam, mix))
    assert [label for label in learnt(store) if label not in OWN] == []
    assert following.startswith("lists of ")
    ids += [r.id for r in store.journal]

    store, following = part(values, folder, "train")
    cfg = validate(RECIPES[values["recipe"]].Config, values, "toy")
    assert len([label for label in learnt(store) if label not in OWN]) == len(cfg.trainings())
    assert not finished(folder) & {"build_index", "verify_export"}
    assert not any("queries/test" in r.label or "test (" in r.label for r in store.journal)
    assert following == "embed passages (after)"
    ids += [r.id for r in store.journal]

    _, lab = run_recipe(values, folder)
    assert all(r.reused for r in lab.store.journal)
    assert set(ids) == {r.id for r in lab.store.journal}  # nothing beside it was made either


def test_parts_make_the_run_that_would_have_been_made_at_once(
    toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", toy_run["config"], "--store", str(tmp_path / "store"), "--out", str(tmp_path / "run")]
    followings = []
    for phase in PHASES:
        assert main([*command, "--until", phase]) == 0
        said = capsys.readouterr().out
        assert f"{phase} is finished: {PHASES[phase]}" in said
        followings.append(re.findall(r"without --until\) goes on with: (.*)", said)[0])
        assert not (tmp_path / "run").exists()
    assert followings[0] == "embed passages (student)" and followings[2:] == [
        "lists of step 1: 5/5/10",
        "embed passages (after)",
    ]
    assert main(command) == 0
    again = Folder.of(tmp_path / "run").read_json("report.json")
    assert {s["id"] for s in again["stages"]} == {s["id"] for s in toy_run["stages"]}
    means = ("nDCG@10", "RR@10", "R@100")
    assert [again["systems"]["student"][m] for m in means] == [toy_run["systems"]["student"][m] for m in means]


def test_a_part_of_a_finished_run_makes_nothing(toy_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = {p for p in toy_run["store"].rglob("*") if p.is_file()}
    assert main(["run", toy_run["config"], "--store", str(toy_run["store"]), "--until", "score"]) == 0
    assert "; 0 stages made, " in capsys.readouterr().out
    assert {p for p in toy_run["store"].rglob("*") if p.is_file()} == before


def test_until_and_dry_run_are_refused_together(
    toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "toy.yaml", toy_config)
    assert main(["run", config, "--until", "embed", "--dry-run"]) == 2
    assert (
        capsys.readouterr().err
        == "raydrd: --until: a dry run shows all stages and runs none; leave out --until, or --dry-run\n"
    )


def test_the_command_line_offers_the_phases_there_are() -> None:
    for phase in PHASES:
        assert parser().parse_args(["run", "c.yaml", "--until", phase]).until == phase
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "c.yaml", "--until", "publish"])
