"""A cheap teacher, an expensive one for what is in doubt: the stages, and a run that pays for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydrd.flow.retrieve import mine, retrieve
from raydrd.flow.teach import ready, teach, teacher_run
from raydrd.methods.escalation import chosen
from raydrd.recipes import RECIPES
from raydrd.spine.store import Artifact, Store
from raydrd.spine.tables import SCORED
from raydrd.stages.escalate import choose, fit_line, join_scores, share_budget
from raydrd.stages.scorers import CrossEncoderScorer
from tests.recipes import LISTS, SCALE, assert_found_again, dry_run, fact, open_toy, rows, run_recipe, run_toy, settings, steps
from tests.stage_inputs import put, whole, with_resources

PART = 7


def scored(store: Store, name: str, lists: list[list[int]], scores: list[list[float]], size: int = PART) -> Artifact:
    found = [[1.0 / (n + 1) for n in range(len(docs))] for docs in lists]
    return put(store, name, pa.table([list(range(len(lists))), lists, found, scores], schema=SCORED), size)


def toy_scores(queries: int = 24, depth: int = 10) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    draw = np.random.default_rng(0)
    lists = [draw.permutation(60)[: depth - n % 3].tolist() for n in range(queries)]
    cheap = [draw.normal(size=len(docs)).astype(np.float32).tolist() for docs in lists]
    return lists, cheap, [[3 * c - 2 for c in own] for own in cheap]


@pytest.mark.parametrize("by", ["top", "margin", "disagreement"])
def test_what_goes_on_is_what_the_rule_chooses(store: Store, by: Any, tmp_path: Path) -> None:
    lists, cheap, _ = toy_scores()
    made = store.run(choose, scored=scored(store, "cheap", lists, cheap), by=by, share=0.25, pairs=None)
    found = whole(made)["doc_rows"].to_pylist()
    assert made.metrics["pairs"] == sum(map(len, found)) and made.metrics["of"] == sum(map(len, lists))
    assert made.metrics["pairs"] == pytest.approx(0.25 * made.metrics["of"], abs=6)
    for docs, scores, went in zip(lists, cheap, found, strict=True):
        student = np.array([1.0 / (n + 1) for n in range(len(docs))])
        assert went == [docs[n] for n in chosen(np.array(scores), student, len(went), by=by)]


@pytest.mark.parametrize("size", [20_000, 5])
def test_one_budget_is_shared_by_how_near_the_best_candidates_lie(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from raydrd.stages import escalate

    monkeypatch.setattr(escalate, "FEW_ROWS", size)
    lists, cheap, _ = toy_scores()
    own = with_resources(store, tmp_path / str(size))
    all_ = scored(own, "cheap", lists, cheap)
    level = own.run(share_budget, scored=all_, share=0.25)
    made = own.run(choose, scored=all_, by="gap", share=0.25, pairs=None, level=level)
    found, of = whole(made)["doc_rows"].to_pylist(), sum(map(len, lists))
    assert 0.25 * of - 12 <= made.metrics["pairs"] == sum(map(len, found)) <= 0.25 * of
    # No candidate that stayed lies nearer to its best than one that went, and no list sends one alone.
    nearest = [(max(own_) - score, doc in went) for docs, own_, went in zip(lists, cheap, found, strict=True)
               for doc, score in zip(docs, own_, strict=True) if score < max(own_)]  # fmt: skip
    stayed, went_on = (min(g for g, w in nearest if not w), max(g for g, w in nearest if w))
    assert went_on <= stayed * 1.01 and not any(len(went) == 1 for went in found)
    assert len({len(went) for went in found}) > 3


def test_where_gaps_tell_nothing_every_list_has_its_own_budget(store: Store) -> None:
    lists, same = [[1, 2, 3, 4], [5, 6, 7, 8]], [[1.0] * 4, [2.0] * 4]
    all_ = scored(store, "same", lists, same)
    level = store.run(share_budget, scored=all_, share=0.5)
    assert level.metrics["level"] == -1
    made = store.run(choose, scored=all_, by="gap", share=0.5, pairs=None, level=level)
    assert whole(made)["doc_rows"].to_pylist() == [[1, 2], [5, 6]]


def test_expensive_scores_take_their_places_on_the_cheap_scale(store: Store) -> None:
    lists, cheap, expensive = toy_scores()
    some = [docs[1::2] for docs in lists]
    theirs = [scores[1::2] for scores in expensive]
    few, all_ = scored(store, "expensive", some, theirs, 5), scored(store, "cheap", lists, cheap)
    line = store.run(fit_line, cheap=all_, expensive=few)
    assert line.metrics["slope"] == pytest.approx(3, abs=1e-4) and line.metrics["offset"] == pytest.approx(-2, abs=1e-4)
    assert line.metrics["pairs"] == sum(map(len, some))
    turned = [[-s for s in own] for own in theirs]  # another opinion, on the same line
    joined = store.run(join_scores, cheap=all_, expensive=scored(store, "turned", some, turned), fitted=line)
    assert whole(joined)["doc_rows"].to_pylist() == lists
    for own, before, other in zip(whole(joined)["teacher_scores"].to_pylist(), cheap, turned, strict=True):
        assert own[::2] == before[::2]
        np.testing.assert_allclose(own[1::2], [(score + 2) / 3 for score in other], atol=1e-5)


def test_nobody_is_asked_about_an_empty_list(store: Store) -> None:
    lists, cheap = [[1, 2, 3], [], [4]], [[1.0, 2.0, 3.0], [], [4.0]]
    all_ = scored(store, "cheap", lists, cheap)
    made = store.run(choose, scored=all_, by="margin", share=None, pairs=2)
    assert whole(made)["doc_rows"].to_pylist() == [[2, 3], [], [4]]
    joined = store.run(
        join_scores, cheap=all_, expensive=(few := scored(store, "few", [[2, 3], [], [4]], [[9.0, 5.0], [], [7.0]])),
        fitted=store.run(fit_line, cheap=all_, expensive=few),
    )  # fmt: skip
    found = whole(joined)["teacher_scores"].to_pylist()
    assert found[0][0] == 1.0 and found[0][1] > found[0][2] and found[1] == [] and len(found[2]) == 1


# -- at work ------------------------------------------------------------------------------------------


def teachers(toy: Path, **more: Any) -> dict[str, Any]:
    """A random reranker scores everything, the oracle what is in doubt."""
    cheap = {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64}
    return {"kind": "escalate", "by": "top", "cheap": cheap, "expensive": {**cheap, "model": str(toy / "teacher")}, **more}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each call of a cross-encoder read."""
    asked: list[int] = []
    plain = CrossEncoderScorer.scores

    def counting(self: CrossEncoderScorer, query_rows: Any, *doc_rows: Any) -> Any:
        asked.append(len(query_rows))
        return plain(self, query_rows, *doc_rows)

    monkeypatch.setattr(CrossEncoderScorer, "scores", counting)
    return asked


def test_an_escalation_is_cheap_where_nothing_goes_on_and_the_expensive_one_where_all_does(toy: Path, tmp_path: Path) -> None:
    found = {}
    for share in (0.0, 0.5, 1.0):
        values = settings(toy, "margin_mse", teacher=teachers(toy, share=share), lists=LISTS, train=steps(1), preflight="warn")
        _, lab = open_toy(values, tmp_path)
        pool = mine(lab, lab.start)
        found[share] = teach(lab, lab.teacher, pool, lab.train_data, "queries/train")
        alone = [teach(lab, member, pool, lab.train_data, "queries/train") for member in lab.teacher.members]
    assert found[0.0].id == alone[0].id
    for whole_, theirs in zip(rows(found[1.0]), rows(alone[1]), strict=True):
        by_ours = np.array(theirs["teacher_scores"])[np.argsort(-np.array(whole_["teacher_scores"]), kind="stable")]
        assert (np.diff(by_ours) <= 1e-5).all() and np.ptp(by_ours) > 0.5  # the oracle's order, but for the last bits
    half, cheap = rows(found[0.5]), rows(alone[0])
    changed = [
        sum(a != b for a, b in zip(x["teacher_scores"], y["teacher_scores"], strict=True))
        for x, y in zip(half, cheap, strict=True)
    ]
    assert changed == [30] * 24  # of 60 candidates
    before = retrieve(lab, lab.start, lab.data, "queries/test", k=60, label="before")
    ran, how = teacher_run(lab, before) or (None, "")
    assert ran is not None and how == "escalation, re-ranking 100 passages of BM25, the start"


def test_pairs_are_paid_for_once_and_told(toy: Path, tmp_path: Path, calls: list[int]) -> None:
    half, more_ = (teachers(toy, share=share, by="top") for share in (0.5, 0.75))
    step = {"lists": {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10}, "train": steps(30)}
    values = settings(toy, "cldrd", teacher=half, curriculum=[step], loss=SCALE, preflight="warn")
    report = run_toy(tmp_path, values)
    told = "escalation of train"
    cheap, oracle = str(toy / "reranker"), str(toy / "teacher")
    assert fact(report, told, f"pairs that {cheap} scored") == 24 * 60
    assert fact(report, told, f"of them {oracle} too") == 24 * 30 and fact(report, told, "share") == 0.5
    assert -1 <= fact(report, told, "correlation of the two") <= 1
    # On one passage in two it has the oracle's word: better than before, and the student learns it.
    systems = {name: one["nDCG@10"] for name, one in report["systems"].items()}
    assert systems["teacher"] > systems["student_before"] + 0.2 and systems["student"] > systems["student_before"] + 0.1
    paid = sum(calls)
    assert_found_again(report, tmp_path)
    assert sum(calls) == paid
    # A larger budget pays for what is new alone.
    more = run_toy(tmp_path / "more", {**values, "teacher": more_}, store=report["store"])
    train = next(s for s in more["stages"] if s["label"] == "score train, escalated (teacher)")
    assert not train["reused"]
    books = {one["label"]: one["values"] for one in more["facts"]}
    assert books["escalation of train"][f"of them {oracle} too"] == 24 * 45
    assert sum(calls) - paid == 24 * 15 + len(calls_of(more, "test")) + len(calls_of(more, "dev"))


def calls_of(report: dict[str, Any], what: str) -> list[None]:
    """One entry for each pair that a larger share adds."""
    values = next(one["values"] for one in report["facts"] if one["label"].startswith(f"escalation of {what}"))
    of = next(v for name, v in values.items() if name.startswith("pairs that"))
    return [None] * (round(0.75 * of) - round(0.5 * of))


@pytest.mark.parametrize(
    ("recipe", "budget"),
    [
        ("adam", {"pairs": 6}),
        ("adam", {"share": 0.5, "by": "gap"}),
        ("pairdistill", {"pairs": 6}),
        ("prod", {"share": 0.5, "by": "gap"}),
        ("md2pr", {"pairs": 6}),
    ],
)
def test_all_recipes_take_it(toy: Path, tmp_path: Path, recipe: str, budget: dict[str, Any]) -> None:
    few = {"sources": ["student"], "depth": 12}
    own: dict[str, dict[str, Any]] = {
        "adam": {"lists": LISTS, "dark": {"built": 4, "reinforced": 2, "noisy": 2}, "train": steps(2)},
        "pairdistill": {
            "pairwise": {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "train": {"train": steps(1)}},
            "rounds": [steps(1), steps(1)], "lists": {"size": 8}, "pairs": {"top_k": 6, "window": 2, "pairs": 2},
        },
        "prod": {"progress": [{"train": steps(2), "lists": LISTS}]},
        "md2pr": {"words": None, "rounds": [steps(1)], "lists": LISTS},
    }  # fmt: skip
    values = settings(toy, recipe, teacher=teachers(toy, **budget), loss=SCALE, candidates=few, preflight="warn", **own[recipe])
    student, lab = run_recipe(values, tmp_path)
    assert student.id != lab.start.id
    labels = [record.label for record in lab.store.journal]
    if recipe == "adam":  # written passages are put on the scale that the mined ones are on
        assert labels.count("fit train, dark examples") == 1 and "fit train, dark, dark examples" not in labels
        fitted, joined = (
            [lab.store.find(r.name, r.id) for r in lab.store.journal if r.label.startswith(kind)]
            for kind in ("fit train", "join train")
        )
        assert len(joined) == 2
        assert {one.manifest["inputs"]["fitted"]["artifact"] for one in joined} == {f"fit_line/{fitted[0].id}"}


def test_members_that_learn_are_trained_first(toy: Path, tmp_path: Path) -> None:
    large = {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "train": {"train": steps(2)}}
    values = settings(toy, "margin_mse", teacher={**teachers(toy), "expensive": large}, lists=LISTS, train=steps(1))
    _, lab = open_toy(values | {"preflight": "warn"}, tmp_path)
    assert not lab.teacher.is_trained
    trained = ready(lab, lab.teacher, mine(lab, lab.start, positives=True))
    assert trained.is_trained and trained.members[1].identity.startswith("trained:")
    assert lab.preflights[0]["identity"] == trained.known_as and "top {'share': 0.3, 'pairs': None}" in trained.known_as


def test_how_the_work_is_cut_changes_nothing(toy: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydrd.stages import escalate

    lists, cheap, _ = toy_scores()
    found = []
    for size in (20_000, 5):
        monkeypatch.setattr(escalate, "FEW_ROWS", size)
        own = with_resources(store, tmp_path / str(size))
        all_ = scored(own, "cheap", lists, cheap)
        went = own.run(choose, scored=all_, by="margin", share=0.3, pairs=None)
        few = scored(
            own,
            "few",
            whole(went)["doc_rows"].to_pylist(),
            [[0.1 * d for d in docs] for docs in whole(went)["doc_rows"].to_pylist()],
        )
        line = own.run(fit_line, cheap=all_, expensive=few)
        found.append((whole(went), line.metrics["pairs"], whole(own.run(join_scores, cheap=all_, expensive=few, fitted=line))))
    assert found[0][0].equals(found[1][0]) and found[0][1] == found[1][1]
    for a, b in zip(*(made[2]["teacher_scores"].to_pylist() for made in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_dry_run_names_its_stages(toy: Path) -> None:
    values = settings(toy, "margin_mse", teacher=teachers(toy, share=0.25), lists=LISTS, train=steps(1))
    from raydrd.config import validate
    from raydrd.dry import plan, render

    cfg = validate(RECIPES["margin_mse"].Config, values, "toy")
    labels, _ = dry_run(cfg)
    wanted = ["score train (reranker)", "escalate train", "score train, escalated (teacher)", "fit train", "join train"]
    assert [label for label in labels if label in wanted] == wanted
    text = render(plan(cfg), "toy")
    shared = validate(RECIPES["margin_mse"].Config, {**values, "teacher": teachers(toy, share=0.25, by="gap")}, "toy")
    assert "share budget train" in dry_run(shared)[0] and "on average 15 passages a query, by gap" in render(
        plan(shared), "toy"
    )
    assert "up to 15 passages a query, by top" in text and "up to 15 passages a query, 64 tokens a pair" in text
