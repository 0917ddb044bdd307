"""Mix: the parts of all papers in one config run, and parts that do not go together are refused before they cost anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.flow.lab import check_setting
from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.recipes import RECIPES
from raydrd.session import read_config
from tests.recipes import (
    LISTS,
    SCALE,
    artifact,
    artifact_of,
    assert_found_again,
    assert_learns,
    dry_run,
    fact,
    refusal,
    rows,
    run_recipe,
    run_toy,
    settings,
    steps,
    table_rows,
)

PAIRS = {"top_k": 10, "window": 3, "pairs": 4}
ROOT = Path(__file__).resolve().parents[1]
NOT_ANEW = "candidates.sources has no student: rounds do not mine anew"
LISTWISE, CONTRASTIVE = {"kind": "distil"}, {"kind": "contrastive"}
MARGINS = {"kind": "margin_mse", "weight": 0.01}


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    """A curriculum of two steps: coarse with everything on, then plain lists from candidates mined anew, anchored."""
    everything = {
        "lists": {"kind": "graded", "graded": 5, "hard": 3, "rest": 3, "hard_until": 20},
        "dark": {"built": 4, "reinforced": 2, "noisy": 2},
        "pairs": PAIRS,
        "filter": {"keep": 3},
        "pacing": {},
        "words": {"weight": 0.5, "projection": 16},
        "terms": [LISTWISE, {"kind": "ordered"}, {"kind": "contrastive", "weight": 0.5}, {"kind": "pairwise", "weight": 1.0}],
        "train": steps(20),
    }
    plain = {
        "mine": True,
        "lists": {"kind": "sampled", **LISTS},
        "filter": {"keep": 3},
        "terms": [{**LISTWISE, "suspects": "mask"}, {"kind": "distil", "source": "anchor"}, MARGINS],
        "train": steps(8, 1.0e-3),
    }
    return settings(
        toy,
        "mix",
        student={"model": str(toy / "student"), "query_max_len": 20, "passage_max_len": 40},
        pairwise={"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64},
        steps=[everything, plain],
        preflight="warn",  # the pairwise teacher is a random one
        **SCALE,
    )


@pytest.fixture(scope="module")
def report(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_toy(tmp_path_factory.mktemp("mix"), values)


def test_everything_at_once_learns_and_is_found_again(report: dict[str, Any], tmp_path: Path) -> None:
    assert_learns(report, by=0.25)
    assert_found_again(report, tmp_path)


def test_one_list_carries_all_parts(report: dict[str, Any]) -> None:
    first = rows(artifact(report, "lists of step 1"))
    assert len(first) == 24
    dark = sum(bool(flag & DARK) for one in first for flag in one["flags"])
    assert dark == fact(report, "step 1", "kept") > 24
    assert sum(len(one["pair_p"]) for one in first) > 12 and fact(report, "step 1", "pairs compared") == 24 * PAIRS["pairs"]
    for one in first:
        flags = np.array(one["flags"])
        assert not (flags & SUSPECT)[(flags & (POSITIVE | DARK)) != 0].any()
        assert 0 <= one["confidence"] <= 1
        # The curriculum's groups: exact order above a hard block above the rest; dark examples stand outside of it.
        labels = np.array(one["labels"])[(flags & DARK) == 0]
        assert len(labels) == 11 and (np.diff(labels) <= 0).all() and len(set(labels.tolist())) == 7
        places = [*one["pair_left"], *one["pair_right"]]
        assert all(0 <= place < len(flags) and not flags[place] & DARK for place in places)
    second = rows(artifact(report, "anchor scores (step 2)"))
    assert all(len(one["anchor_scores"]) == len(one["doc_rows"]) == 8 for one in second)
    assert not any(one["pair_p"] or any(flag & DARK for flag in one["flags"]) for one in second)


def test_pools_of_the_curriculum_are_disjoint(report: dict[str, Any]) -> None:
    for one in rows(artifact(report, "lists of step 1")):
        assert len(set(one["doc_rows"])) == len(one["doc_rows"])
        # Group 1 begins with the labelled positives; the two blocks hold none.
        positive = [bool(flag & POSITIVE) for flag in one["flags"]]
        assert positive[:5] == [True] * 5 and not any(positive[5:])


def test_steps_share_candidates_until_one_mines(report: dict[str, Any]) -> None:
    labels = [s["label"] for s in report["stages"] if s["name"] == "score_pairs" and s["label"].startswith("score train")]
    assert labels == ["score train, step 1 (teacher)", "score train, dark, step 1 (teacher)", "score train, step 2 (teacher)"]
    second = artifact(report, labels[-1])
    assert second.metrics["taken"] == 24 * 60 and second.metrics["pairs"] == 0  # the whole corpus was scored before


def test_thresholds_of_another_kind_are_not_carried_on(values: dict[str, Any], tmp_path: Path) -> None:
    own = {"mode": "per_query", "margin": 1.0, "keep": 3}
    base = {"lists": {"kind": "sampled", **LISTS}, "terms": [LISTWISE, CONTRASTIVE], "train": steps(1)}
    quantile = {"keep": 3, "r0": 1.0, "step": 0.8}
    changed = [{**base, "filter": rule} for rule in (own, quantile, None, own, quantile)]
    _, lab = run_recipe(values | {"steps": changed, "pairwise": None}, tmp_path)
    found = [artifact_of(lab, f"filter threshold (step {n})") for n in (1, 2, 5)]
    assert [one.metrics["theta"] is None for one in found] == [True, False, False]
    # Steps without a quantile are no rounds: r0, then one step below it, smoothed.
    assert [one.manifest["inputs"]["round"] for one in found] == [0, 0, 1]
    teacher = artifact_of(lab, "score train, step 1 (teacher)")
    best = {row["query_row"]: dict(zip(row["doc_rows"], row["teacher_scores"], strict=True)) for row in rows(teacher)}
    judged = [row["doc_rows"] for row in table_rows(lab.data, "queries/train")]
    scores = [best[query][docs[0]] for query, docs in enumerate(judged)]
    first, second = np.quantile(scores, [1.0, 0.2])
    assert found[1].metrics["theta"] == pytest.approx(first)
    assert found[2].metrics["theta"] == pytest.approx((first + second) / 2) and second < first


def test_lists_that_drop_every_query_are_said_so(values: dict[str, Any], tmp_path: Path) -> None:
    nothing = {"kind": "confusing", "student_from": 60, "student_to": 60}
    with pytest.raises(InputError, match="step 1: its list rule drops every train query; loosen it"):
        run_recipe(values | {"steps": [{"lists": nothing, "terms": [LISTWISE], "train": steps(1)}], "pairwise": None}, tmp_path)


def test_sources_without_the_student_are_told_where_a_step_mines(values: dict[str, Any]) -> None:
    again = [{**ONE, "terms": [LISTWISE], "mine": mined} for mined in (False, True)]
    for turns, sources, told in ((again, ["bm25"], [NOT_ANEW]), (again, ["bm25", "student"], []), (again[:1], ["bm25"], [])):
        changed = values | {"steps": turns, "candidates": {"sources": sources}}
        _, lab = dry_run(validate(RECIPES["mix"].Config, changed, "toy"))
        assert lab.notes == told


@pytest.mark.parametrize(
    ("recipe", "several", "single"),
    [("pairdistill", [], "rounds=[{}]"), ("md2pr", [], "rounds=[{}]"), ("adam", ["rounds=2"], "rounds=1")],
)
def test_sources_without_the_student_are_told_where_rounds_mine(recipe: str, several: list[str], single: str) -> None:
    path, train = (
        str(ROOT / "configs" / "msmarco" / f"{recipe}.yaml"),
        "{learning_rate: 1.0e-5, train_batch_size: 8, max_steps: 1}",
    )
    own = ["data.path=nowhere", "candidates.sources=[bm25]"]
    assert dry_run(read_config(path, [*own, *several]))[1].notes == [NOT_ANEW]
    assert dry_run(read_config(path, [*own, single.replace("{}", train)]))[1].notes == []


def test_adams_gate_needs_whole_batches_too() -> None:
    path = str(ROOT / "configs" / "msmarco" / "adam.yaml")
    cut = ["data.path=nowhere", "pacing.mode=batch_topk", "resources.per_device_train_batch_size=4"]
    with pytest.raises(InputError, match="^pacing.mode: batch_topk needs the whole batch at once"):
        check_setting(read_config(path, cut))
    check_setting(read_config(path, cut[:2]))


def test_a_variant_drops_what_nothing_in_it_reads(values: dict[str, Any]) -> None:
    cfg = validate(RECIPES["mix"].Config, values, "toy")
    found = RECIPES["mix"].variants(cfg)
    parts = {
        label: [[getattr(s, n) is not None for n in ("dark", "pacing", "filter")] for s in one.steps]
        for label, one in found.items()
    }
    everything, plain = [True, True, True], [False, False, True]
    assert parts["dark examples: none"] == [[False, False, True], plain]
    assert parts["self-paced: none"] == [[True, False, True], plain]
    assert parts["ordered term: none"] == parts["margin_mse term: none"] == [everything, plain]
    assert parts["contrastive term: none"] == [[True, True, False], plain]  # the second step's distil masks suspects itself
    assert parts["distil term: none"] == [[False, False, True], [False, False, False]]
    for one in found.values():
        check_setting(one)
    contrasted = {**ONE, "terms": [CONTRASTIVE, {"kind": "ordered"}], "filter": {"keep": 3}, "pacing": {"scope": "all"}}
    gone = RECIPES["mix"].variants(validate(RECIPES["mix"].Config, values | {"steps": [contrasted], "pairwise": None}, "toy"))
    (step,) = gone["contrastive term: none"].steps
    assert (step.filter, step.pacing) == (None, None)


ONE = {"lists": {"kind": "sampled", **LISTS}, "train": steps(1)}


@pytest.mark.parametrize(
    ("step", "more", "message"),
    [
        ({"terms": [{"kind": "pairwise"}], "pairs": PAIRS}, {"pairwise": None}, "steps.0: a pairwise term needs pairs and"),
        ({"terms": [{"kind": "pairwise"}]}, {}, "steps.0: a pairwise term needs pairs and"),
        ({"terms": [LISTWISE], "pairs": PAIRS}, {}, "steps.0: pairs are compared but no term reads them"),
        (
            {"terms": [{"kind": "contrastive"}], "dark": {}},
            {},
            "steps.0: dark examples are read by {kind: distil} over the list",
        ),
        ({"terms": [{"kind": "distil", "over": "batch"}], "dark": {}}, {}, "steps.0: dark examples are read by {kind: distil}"),
        ({"terms": [LISTWISE], "filter": {}}, {}, "steps.0: the filter's marks are read by {kind: contrastive} with own neg"),
        ({"terms": [{**CONTRASTIVE, "own_negatives": False}], "filter": {}}, {}, "steps.0: the filter's marks are read by"),
        ({"terms": [LISTWISE], "pacing": {}}, {}, "steps.0: pacing.scope: dark gates dark examples, and there is none"),
        ({"terms": [CONTRASTIVE], "pacing": {"scope": "distil"}}, {}, "steps.0: pacing.scope: distil gates a distil term, and"),
        ({"terms": [{"kind": "ordered"}], "pacing": {"scope": "all"}}, {}, "steps.0: pacing.scope: all gates distil and"),
        (
            {"terms": [LISTWISE], "dark": {}, "pacing": {"mode": "batch_topk"}},
            {"resources.train_workers": 2},
            "steps.0.pacing.mode: batch_topk needs the whole batch at once",
        ),
        ({"terms": [{"kind": "distil", "over": "global"}]}, {}, "steps.0: over: global compares with a bi-encoder's vectors"),
        ({"terms": [LISTWISE]}, {"candidates": {"sources": ["teacher"]}}, "candidates.sources: only a bi_encoder teacher can"),
        ({"terms": [LISTWISE]}, {"pairwise": "teacher"}, "pairwise: it is the teacher itself, which scores one passage"),
        ({"terms": [LISTWISE]}, {"pairwise.scale": 2.0}, "pairwise.scale: a pairwise teacher's scores become probabilities"),
        ({"terms": [LISTWISE]}, {"teacher.scale": "fitted", "data.dev_split": None}, "teacher.scale: fitted needs dev queries"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    values: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step: dict[str, Any],
    more: dict[str, Any],
    message: str,
) -> None:
    changed = values | {"steps": [ONE | step]}
    for name, value in more.items():
        field, _, inner = name.partition(".")
        new = values["teacher"] if value == "teacher" else value
        changed[field] = {**changed[field], inner: new} if inner else new
    assert refusal(capsys, tmp_path, changed).startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"teacher": {"kind": "bi_encoder", "model": "deep"}}, "words: the word level reads a cross_encoder's attention"),
        ({"student": {"model": "student"}}, "words: queries and passages of the student have up to 128 tokens together"),
        ({"teacher": {"kind": "cross_encoder", "model": "deep"}}, "is an encoder without a ranking head; set teacher.train"),
        ({"pairwise": {"kind": "cross_encoder", "model": "deep"}}, "is an encoder without a ranking head; set teacher.train"),
        ({"teacher": {"kind": "prompted", "model": "deep", "prompt": "duot5"}}, "teacher.prompt: it compares two passages"),
        ({"pairwise": {"kind": "prompted", "model": "deep", "prompt": "monot5"}}, "pairwise.prompt: it scores one passage"),
        (
            {"teacher": {"kind": "prompted", "model": "deep", "prompt": "duot5"}, "pairwise": "teacher"},
            "teacher.prompt: it compares two passages",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(
    values: dict[str, Any], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], message: str
) -> None:
    changed = values | {name: {**one, "model": str(toy / one["model"])} for name, one in more.items() if one != "teacher"}
    if more.get("pairwise") == "teacher":
        changed["pairwise"] = changed["teacher"]
    assert message in refusal(capsys, tmp_path, changed)
