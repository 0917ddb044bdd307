"""`raydrd compare`: the numbers are those of `statistics`, and what cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydrd.cli import main
from raydrd.comparing import CHANGED, compare_runs
from raydrd.errors import InputError
from raydrd.report import versus
from raydrd.statistics import bootstrap_interval, compare, holm, paired_bootstrap
from tests.run_folders import BASE, BETTER, NOISY, QUERIES_N, RECALL, SAMPLES, make_run, three_runs


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Runs base, better and noisy over 30 queries."""
    return three_runs(tmp_path)


def test_every_number_is_what_statistics_say(three: list[str]) -> None:
    found = compare_runs(three, samples=SAMPLES, seed=5)
    assert found["metric"] == "nDCG@10" and found["metrics"] == ["nDCG@10", "R@100"] and found["queries"] == QUERIES_N
    assert [s["label"] for s in found["systems"]] == ["base", "better", "noisy"]
    for system, values in zip(found["systems"], (BASE, BETTER, NOISY), strict=True):
        low, high = bootstrap_interval(values, seed=5, samples=SAMPLES)
        assert system["metrics"]["nDCG@10"] == {"mean": pytest.approx(values.mean()), "low": low, "high": high}
    expected = []
    for label, values in (("better", BETTER), ("noisy", NOISY)):
        for metric, a, b in (("nDCG@10", values, BASE), ("R@100", RECALL[::-1], RECALL)):
            numbers = asdict(compare(a, b, seed=5, samples=SAMPLES))
            expected.append({"a": label, "b": "base", "metric": metric, **numbers})
    assert [{k: v for k, v in c.items() if k != "p_holm"} for c in found["comparisons"]] == expected
    assert [c["p_holm"] for c in found["comparisons"]] == holm([c["p"] for c in expected])
    assert found["comparisons"][0]["wins"] == QUERIES_N and found["comparisons"][0]["p_holm"] < 0.05
    assert compare_runs(three, samples=SAMPLES, seed=5) == found
    assert compare_runs(three, samples=SAMPLES, seed=6)["comparisons"] != found["comparisons"]


def test_all_pairs_are_corrected_together(three: list[str]) -> None:
    found = compare_runs(three, all_pairs=True, samples=SAMPLES)
    made = found["comparisons"]
    assert [(c["a"], c["b"]) for c in made[::2]] == [("better", "base"), ("noisy", "base"), ("noisy", "better")]
    assert [c["p_holm"] for c in made] == holm([c["p"] for c in made])
    few = compare_runs(three, samples=SAMPLES)["comparisons"]
    assert made[0]["p"] == few[0]["p"] and made[0]["p_holm"] > few[0]["p_holm"]  # more tests, a stricter correction
    assert [(c["a"], c["b"]) for c in found["changed"]] == [("better", "base"), ("noisy", "base"), ("noisy", "better")]


def test_systems_of_a_run_and_another_main_metric(three: list[str]) -> None:
    found = compare_runs([three[0], f"{three[0]}:teacher"], metric="R@100", samples=SAMPLES)
    assert [s["label"] for s in found["systems"]] == ["student", "teacher"]  # one run: its name tells nothing apart
    assert found["metrics"] == ["R@100", "nDCG@10"]
    same, better = found["comparisons"]
    assert (same["difference"], same["p"], same["ties"]) == (0.0, 1.0, QUERIES_N)
    assert better["difference"] == pytest.approx((BETTER - BASE).mean())
    assert found["changed"] == [{"a": "teacher", "b": "student", "improved": [], "hurt": []}]
    assert "not clearly different from student on R@100" in versus.verdict(found)
    assert "no query changed" in versus.render(found)
    mixed = compare_runs([f"{three[0]}:teacher", three[2]], samples=SAMPLES)
    assert [s["label"] for s in mixed["systems"]] == ["base:teacher", "noisy"]


def test_slices_cut_the_queries_and_compare_each_part(three: list[str]) -> None:
    found = compare_runs(three, samples=SAMPLES, seed=5)
    by = {cut["by"]: cut["bins"] for cut in found["slices"]}
    assert set(by) == {"query_words", "overlap"}  # every query has one judged passage: nothing to cut
    assert any("no slices by number of judged passages: it is 1" in note for note in found["notes"])
    assert [(b["low"], b["high"], b["queries"]) for b in by["query_words"]] == [(1, 2, 8), (3, 6, 13), (7, 9, 9)]
    words = np.array([1 + n % 9 for n in range(QUERIES_N)])
    chosen = words >= 7
    last = by["query_words"][2]["systems"]
    assert last[0] == {"label": "base", "mean": pytest.approx(BASE[chosen].mean())}
    low, high = paired_bootstrap(NOISY[chosen], BASE[chosen], seed=5, samples=SAMPLES)
    change = pytest.approx((NOISY - BASE)[chosen].mean())
    mean = pytest.approx(NOISY[chosen].mean())
    assert last[2] == {"label": "noisy", "mean": mean, "difference": change, "low": low, "high": high}
    assert [sum(b["queries"] for b in cut) for cut in by.values()] == [QUERIES_N, QUERIES_N]


def test_the_most_changed_queries_come_first(tmp_path: Path) -> None:
    base, other = np.full(25, 0.5), np.full(25, 0.5)
    other[[3, 7, 9]] = 1.0, 0.9, 0.1
    other[15:] = 0.6
    one = make_run(tmp_path / "one", {"student nDCG@10": base})
    two = make_run(tmp_path / "two", {"student nDCG@10": other}, traits=False)
    changed = compare_runs([one, two], samples=SAMPLES)["changed"][0]
    assert changed["improved"][0] == {"query_id": "q03", "query": "words of q03", "a": 1.0, "b": 0.5}
    # Equal changes stand in the order of the queries; the list is cut.
    assert [q["query_id"] for q in changed["improved"]] == ["q03", "q07", *(f"q{n}" for n in range(15, 15 + CHANGED - 2))]
    assert [q["query_id"] for q in changed["hurt"]] == ["q09"]


def test_old_run_folders_are_compared_without_slices(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / n, {"student nDCG@10": v}, traits=False) for n, v in (("a", BASE), ("b", BETTER))]
    found = compare_runs(runs, samples=SAMPLES)
    assert found["slices"] == [] and any(note.startswith("no slices: ") for note in found["notes"])
    assert found["changed"][0]["improved"][0]["query"] is None
    first = found["changed"][0]["improved"][0]["query_id"]
    assert first in versus.terminal(found) and first in versus.render(found)


def test_runs_over_other_queries_are_refused_unless_common(tmp_path: Path) -> None:
    ids = [f"q{n:02d}" for n in range(QUERIES_N)]
    one = make_run(tmp_path / "one", {"student nDCG@10": BASE}, ids=ids)
    order = [*range(QUERIES_N - 1, 9, -1)]  # 20 of the 30, in another order
    two = make_run(
        tmp_path / "two",
        {"student nDCG@10": [*BETTER[order], 1.0]},
        ids=[*(ids[n] for n in order), "q99"],
        texts=[*(f"words of {ids[n]}" for n in order), "other"],
    )
    with pytest.raises(InputError, match="measured on different queries; they share 20 of 30 and 21 queries; add --common"):
        compare_runs([one, two], samples=SAMPLES)
    found = compare_runs([one, two], common=True, samples=SAMPLES)
    assert found["queries"] == 20
    wanted = compare(BETTER[10:], BASE[10:], seed=0, samples=SAMPLES)
    assert found["comparisons"][0]["difference"] == pytest.approx(wanted.difference)
    assert found["comparisons"][0]["p"] == wanted.p and found["comparisons"][0]["low"] == wanted.low
    assert "compared on the 20 queries that all runs share; there are 30 in one, 21 in two" in found["notes"]
    assert found["slices"][0]["bins"][0]["queries"] > 0


def test_other_data_is_refused_even_with_the_same_ids(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"student nDCG@10": BASE})
    texts = ["another text", *(f"words of q{n:02d}" for n in range(1, QUERIES_N))]
    two = make_run(tmp_path / "two", {"student nDCG@10": BETTER}, digest="d2", texts=texts)
    three = make_run(tmp_path / "three", {"student nDCG@10": BETTER}, digest=None, texts=texts)
    with pytest.raises(InputError, match=r"different data \(digests d1 and d2\); they share 30 of 30 and 30 queries"):
        compare_runs([one, two])
    with pytest.raises(InputError, match="1 queries have the same id but another text; add --common"):
        compare_runs([one, three])
    found = compare_runs([one, two], common=True, samples=SAMPLES)
    assert found["queries"] == QUERIES_N - 1
    assert any("same id but another text" in note for note in found["notes"])
    assert any("the runs' data differ" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("none", "compare: 0 runs; write two or more, for example raydrd compare runs/a runs/b"),
        ("one", "compare: 1 runs; write two or more"),
        ("twice", "are the same system of the same run; write each once"),
        ("missing", "bettr: no report.json here; did you mean '"),
        ("a file", "report.json: a file; did you mean '"),
        ("holds runs", "holds 3 runs (base, better, noisy); name one, for example "),
        ("unfinished", "this run has not finished; run its command again"),
        ("system", "no system 'techer'; did you mean 'teacher'?"),
        ("absent system", "this run has no teacher; write one of student"),
        ("metric", "metric 'ndcg@10' was not measured; did you mean 'nDCG@10'?"),
        ("far metric", "metric 'speed' was not measured; write one of nDCG@10, R@100"),
        ("samples", "--samples 0 --seed 0: write at least 1 sample"),
        ("share none", "share no query; name runs over the same collection and split"),
        ("damaged", "report.json or per_query.parquet is damaged"),
        ("half", "no per_query.parquet in"),
        ("nan", "nDCG@10 is no finite number for every query"),
        ("ambiguous", "a run folder of this name stands beside"),
        ("place", "nosuch://place/run: not an address of a store"),
        ("unwritable", "cannot be written"),
        ("html to stdout", "--html -: write the name of a file"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    case: str, message: str, three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, better, _ = three
    words = [base, better]
    match case:
        case "none":
            words = []
        case "one":
            words = [base]
        case "twice":
            words = [base, f"{base}/:student"]
        case "missing":
            words = [base, str(tmp_path / "bettr")]
        case "a file":
            words = [f"{base}/report.json", better]
        case "holds runs":
            words = [base, str(tmp_path)]
        case "unfinished":
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "config.yaml").write_text("recipe: cldrd")
            words = [base, str(tmp_path / "new")]
        case "system":
            words = [base, f"{base}:techer"]
        case "absent system":
            words = [base, f"{better}:teacher"]
        case "metric":
            words += ["--metric", "ndcg@10"]
        case "far metric":
            words += ["--metric", "speed"]
        case "samples":
            words += ["--samples", "0"]
        case "share none":
            words = [base, make_run(tmp_path / "far", {"student nDCG@10": [1.0]}, ids=["other"]), "--common"]
        case "damaged":
            (tmp_path / "better" / "per_query.parquet").write_bytes(b"PAR1 not really")
        case "half":
            (tmp_path / "better" / "per_query.parquet").unlink()
        case "nan":
            words = [base, make_run(tmp_path / "nan", {"student nDCG@10": [np.nan] * QUERIES_N})]
        case "ambiguous":
            shutil.copytree(base, f"{base}:teacher")
            words = [better, f"{base}:teacher"]
        case "place":
            words = [base, "nosuch://place/run"]
        case "unwritable":
            words += ["--html", str(tmp_path / "base")]
        case "html to stdout":
            words += ["--html", "-"]
    assert main(["compare", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("raydrd: ") and message in said.err


def test_an_ambiguous_name_can_be_written_clearly(three: list[str], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "noisy", f"{three[0]}:teacher")
    found = compare_runs([f"{three[0]}:teacher:student", f"{three[0]}/:teacher"], samples=SAMPLES)
    assert [s["metrics"]["nDCG@10"]["mean"] for s in found["systems"]] == pytest.approx([NOISY.mean(), BETTER.mean()])


def test_runs_of_one_name_are_told_apart_by_their_place(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / n / "run", {"student nDCG@10": v}) for n, v in (("a", BASE), ("b", BETTER))]
    assert [s["label"] for s in compare_runs(runs, samples=SAMPLES)["systems"]] == runs


def test_a_metric_not_every_run_has_is_left_out_and_said(three: list[str], tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", {"student nDCG@10": NOISY})
    found = compare_runs([three[0], plain], samples=SAMPLES)
    assert found["metrics"] == ["nDCG@10"] and "not measured in every run and left out: R@100" in found["notes"]
    with pytest.raises(InputError, match="plain: metric 'R@100' was not measured; "):
        compare_runs([three[0], plain], metric="R@100")


def test_too_few_samples_for_so_many_comparisons_is_said(three: list[str]) -> None:
    assert any("--samples 20 cannot give p below" in note for note in compare_runs(three, samples=20)["notes"])
    assert not any("cannot give p" in note for note in compare_runs(three, samples=SAMPLES)["notes"])


def test_a_real_run_is_compared_with_its_start_and_teacher(
    toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "moved"  # the store is not needed
    alone.mkdir()
    for name in ("report.json", "per_query.parquet"):
        shutil.copy(toy_run["folder"] / name, alone / name)
    runs = [f"{alone}:student_before", str(alone), f"{alone}:teacher", f"{alone}:bm25"]
    page = str(tmp_path / "c.html")
    assert main(["compare", *runs, "--samples", "200", "--json", "-", "--html", page]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["label"] for s in found["systems"]] == ["student_before", "student", "teacher", "bm25"]
    for system in found["systems"]:
        for metric, cell in system["metrics"].items():
            reported = toy_run["systems"][system["system"]]
            assert cell["mean"] == pytest.approx(reported[metric])
            assert [cell["low"], cell["high"]] == pytest.approx(reported["intervals"][metric])
    reported = next(c for c in toy_run["comparisons"] if (c["b"], c["metric"]) == ("student_before", "nDCG@10"))
    mine = found["comparisons"][0]
    assert {name: mine[name] for name in ("difference", "p", "wins", "ties", "losses")} == {
        name: pytest.approx(reported[name]) for name in ("difference", "p", "wins", "ties", "losses")
    }
    kept = pq.read_table(alone / "per_query.parquet").to_pylist()
    assert {row["judged"] for row in kept} == {5} and {row["query_words"] for row in kept} == {4}
    assert {cut["by"] for cut in found["slices"]} == {"overlap"}
    assert all(0 <= row["overlap"] <= 1 and row["query"].count(" ") == 3 for row in kept)
    assert "most improved" in Path(page).read_text()
    assert main(["compare", *runs, "--samples", "200"]) == 0
    assert "Of 3 systems compared with student_before on nDCG@10" in capsys.readouterr().out
