"""What `raydrd compare` shows people: a verdict, the terminal, a page, LaTeX; texts are escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raydrd.cli import main
from raydrd.comparing import compare_runs
from raydrd.report import versus
from tests.pages import Page
from tests.run_folders import BASE, BETTER, QUERIES_N, SAMPLES, make_run, three_runs

EVIL = "</script><img src=x onerror=alert(1)> 100% of $5 & a_b #1 {x} ~^\\ \x1b[31m"


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Runs base, better and noisy over 30 queries."""
    return three_runs(tmp_path)


def test_the_verdict_says_who_is_better_and_how_sure(three: list[str]) -> None:
    found = compare_runs(three[:2], samples=2000)
    change = found["comparisons"][0]["difference"]
    assert versus.verdict(found).startswith(f"better is better than base on nDCG@10: {change:+.3f} [")
    assert "p < 0.001 after Holm's correction for 2 comparisons, 30 queries." in versus.verdict(found)
    turned = versus.verdict(compare_runs(three[1::-1], samples=2000))
    assert turned.startswith(f"base is worse than better on nDCG@10: {-change:+.3f} [")
    many = versus.verdict(compare_runs(three, samples=2000))
    assert many.startswith("Of 2 systems compared with base on nDCG@10, 1 is better (better +")
    assert "1 is not clearly different (noisy " in many


def test_the_terminal_is_aligned_ascii(three: list[str]) -> None:
    text = versus.terminal(compare_runs(three, samples=SAMPLES))
    assert text.isascii() and not text.endswith("\n")
    lines = text.splitlines()
    rules = [n for n, line in enumerate(lines) if line and set(line) == {"-"}]
    assert len(rules) == 1 + 1 + 2 + 2  # results, differences, two slices, two lists of queries
    first = [line for line in lines[rules[0] - 1 : rules[0] + 4] if not line.startswith("-")]
    places = {tuple(m.start() for m in re.finditer(r"[\[\]]", line)) for line in first[1:]}
    assert len(places) == 1 and len(next(iter(places))) == 4  # brackets of two metrics stand below one another
    assert "win/tie/loss" in text and f"{QUERIES_N}/0/0" in text
    assert lines[-1] == versus.verdict(compare_runs(three, samples=SAMPLES))


@pytest.fixture
def evil(tmp_path: Path) -> dict[str, Any]:
    """Markup and control characters in queries, ids and the names of runs."""
    texts, ids = [EVIL] * QUERIES_N, [f"<i>{n}</i>&\x1b" for n in range(QUERIES_N)]
    one = make_run(tmp_path / "<b>a_1&%--$x<", {"student nDCG@10": BASE}, ids=ids, texts=texts)
    two = make_run(tmp_path / "two", {"student nDCG@10": BETTER}, ids=ids, texts=texts)
    return compare_runs([one, two], samples=2000)


def test_the_page_escapes_everything_and_fetches_nothing(evil: dict[str, Any]) -> None:
    text = versus.render(evil)
    page = Page(text)
    assert (
        not {"img", "script", "b", "i", "link", "iframe"} & set(page.tags) and not {"src", "href", "onerror"} & page.attributes
    )
    assert "<img src=x onerror=alert(1)>" in page.text and "<b>a_1&%--$x<" in page.text and "</i>&" in page.text
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert 'name="viewport"' in text and page.tags.count("svg") >= 1


def test_the_terminal_gets_no_control_characters(evil: dict[str, Any]) -> None:
    assert "\x1b" not in versus.terminal(evil) and "<img" in versus.terminal(evil)


def test_latex_escapes_names_and_marks_what_is_clear(evil: dict[str, Any]) -> None:
    text = versus.latex(evil)
    assert r"(a) \textless{}b\textgreater{}a\_1\&\%-{}-\$x\textless{} & " in text
    better = evil["systems"][1]["metrics"]["nDCG@10"]
    assert rf"(b) two & {better['mean']:.3f}\textsuperscript{{a}} \\" in text
    assert rf"{{}} & {{\scriptsize [{better['low']:.3f}, {better['high']:.3f}]}} \\" in text
    assert rf"(b) $-$ (a) & ${evil['comparisons'][0]['difference']:+.3f}$ \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert versus.escape_latex('\\{}~^&%$#_<>|"\n-') == (
        r"\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}\&\%\$\#\_\textless{}\textgreater{}\textbar{}\textquotedbl{} -"
    )


def test_latex_letters_go_to_whoever_is_ahead(three: list[str]) -> None:
    text = versus.latex(compare_runs([three[1], three[0], three[2]], samples=2000))
    # better stands first: the differences are negative, and its row has the letters of both.
    assert f"(a) better & {BETTER.mean():.3f}\\textsuperscript{{b,c}} &" in text
    assert f"(b) base & {BASE.mean():.3f} &" in text


def test_json_round_trip_gives_the_same_page(three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / "out" / f"c.{name}" for name in ("json", "html", "latex")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["compare", *three, "--samples", "500", "--seed", "5", *options]) == 0
    table = capsys.readouterr().out
    found = json.loads(files["json"].read_text())
    assert found.pop("verdict") == versus.verdict(found)
    assert found == compare_runs(three, samples=500, seed=5)
    assert files["html"].read_text() == versus.render(found)
    assert files["latex"].read_text() == versus.latex(found)
    assert table == versus.terminal(found) + "\n"
    assert main(["compare", *three, "--samples", "500", "--seed", "5", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(files["json"].read_text())
