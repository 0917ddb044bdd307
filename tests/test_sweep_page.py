"""What people see of a sweep: terminal, Markdown and page. Names are other people's texts; stopped trials are drawn."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raydrd.report import fieldplots, pictures, sweep, sweeptext
from raydrd.report.plots import apart, cut, cut_front, log_ticks, metric_scale, plain, scale, tick_texts
from raydrd.spine.storage import Folder
from raydrd.sweeping.importance import importance
from raydrd.sweeping.pareto import pareto
from raydrd.sweeping.result import points
from tests.pages import Page
from tests.sweep_results import MAIN, RECOVERED, confirmation, ended, field, result, trial

EVIL = "</script><img src=x onerror=alert(1)> a|b *c* \x1b[31m"
SCALE = field("loss.score_scale", "choice", ["10", "20", "40"])
RATE = field("curriculum.*.train.learning_rate", "loguniform", low=1e-5, high=1e-4)
NAMES = field("curriculum", "named", ["paper", EVIL])
MIXTURE = field("mixture", "shares", parts=["dark.reinforced", "dark.noisy"], total=8)


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "importance": importance(found), "pareto": pareto(found)}


@pytest.fixture(scope="module")
def asha() -> dict[str, Any]:
    """A default, six trials that finished, four stopped at 80 updates, one failed, one refused; the best is trial 6."""
    trials = []
    for n in range(11):
        rate, name = 10 ** (-5 + n / 10), ("paper", EVIL)[n % 2]
        point = {"curriculum": name, "loss.score_scale": (10, 20, 40)[n % 3], "curriculum.*.train.learning_rate": rate}
        point |= {"mixture": {"dark.reinforced": n % 9, "dark.noisy": 8 - n % 9}} if n != 4 else {}
        curve = [(0, 0.2), (60, 0.54), (80, 0.55 + 0.002 * n), (120, 0.58 + 0.002 * n)]
        late = n >= 7
        trials.append(trial(n, point, curve[:-1] if late else curve, "stopped" if late else "finished"))
    trials.append(trial(11, {"loss.score_scale": 20}, curve[:3], "failed", reason=f"ValueError: {EVIL}"))
    trials.append(trial(12, {"loss.score_scale": 40}, [], "refused", reason="loss.score_scale: must be above 0"))
    scheduler = {"kind": "asha", "grace": 20, "reduction": 3}
    found = result([NAMES, SCALE, RATE, MIXTURE], trials, scheduler=scheduler, name=f"toy {EVIL}", config=f"name: {EVIL}\n")
    return _shown({**found, "confirmation": confirmation(0.66, 0.64, 0.002), "notes": [EVIL]})


class Pictures(HTMLParser):
    """Tag, class and trial of everything drawn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.drawn: list[tuple[str, set[str], str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.drawn.append((tag, set((found.get("class") or "").split()), found.get("data-t")))

    def trials(self, tag: str, kind: str) -> set[str | None]:
        return {number for name, kinds, number in self.drawn if name == tag and kind in kinds}


# -- words ------------------------------------------------------------------------------------------


def test_the_verdict_tells_dev_from_test(asha: dict[str, Any]) -> None:
    told = sweeptext.verdict(asha).replace("\u00a0", " ")
    assert told == (
        "Trial 6 is the best on dev: nDCG@10 0.592 (default 0.580); on test, trained anew, it is better than the default: "
        "0.660 against 0.640, +0.020 [+0.010, +0.030], p = 0.002."
    )
    worse = sweeptext.verdict({**asha, "confirmation": confirmation(0.60, 0.64, 0.002)})
    unclear = sweeptext.verdict({**asha, "confirmation": confirmation(0.66, 0.64, 0.2)})
    assert "it is worse than the default" in worse and "it is not clearly different from the default" in unclear
    assert "optimistic" in sweep.terminal(asha) and "300 test queries that chose nothing" in sweep.terminal(asha)


def test_the_verdict_where_the_default_wins_or_nothing_ran() -> None:
    points = [{"loss.score_scale": scale} for scale in (20, 10, 40)]
    found = _shown(result([SCALE], ended([0.6, 0.59, 0.55], points)))
    assert sweeptext.verdict(found) == "Nothing tried beats the default on dev: nDCG@10 0.600; the next, trial 1, has 0.590."
    lost = _shown(result([SCALE], [trial(n, point, [], "failed", reason="x") for n, point in enumerate(points)]))
    assert sweeptext.verdict(lost) == "No trial of toy finished, so nothing is chosen."
    for one in (found, lost):
        assert Page(sweep.render(one)).text and sweep.terminal(one) and sweep.markdown(one)
    assert "best config" in sweep.terminal(found) and "best config" not in sweep.terminal(lost)


def test_the_terminal_has_the_best_first_and_at_most_120_columns(asha: dict[str, Any]) -> None:
    text = sweep.terminal(asha)
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 120 and not text.endswith("\n")
    numbers = [
        int(m[1]) for line in text.splitlines() if (m := re.match(r"(\d+)\*?  .*(finished|stopped|failed|refused)$", line))
    ]
    assert numbers == [6, 5, 4, 3, 2, 1, 0, 10, 9, 8, 7, 11, 12]
    text = " ".join(text.split())
    assert "13 trials: 7 finished, 4 stopped early, 1 failed, 1 refused" in text and "asha (grace 20, reduction 3)" in text
    assert "trial 12 refused: loss.score_scale: must be above 0" in text
    assert "at 80 updates" in text and "best config, ready to run: runs/toy-sweep/best.yaml" in text
    assert "pairs scored by teachers: 1,440 for the default alone, 1,440 for the whole sweep" in text


def test_a_long_sweep_is_cut_on_the_terminal_and_whole_in_the_files() -> None:
    points = [{"loss.score_scale": 20, "curriculum.*.train.learning_rate": 1e-5 * (1 + n / 10)} for n in range(40)]
    trials = ended([0.5] + [0.7 - n / 1000 for n in range(1, 40)], points)
    trials[1]["label"] = ", ".join(f"a.very.long.name.of.a.field={n}" for n in range(20))
    found = _shown(result([SCALE, RATE], trials))
    text = sweep.terminal(found)
    assert max(map(len, text.splitlines())) <= 120 and "... 19 more in sweep.md" in text
    assert len(re.findall(r"  finished$", text, re.M)) == 21  # twenty, and the default, which is the last
    assert sum(line.endswith("| finished |") for line in sweep.markdown(found).splitlines()) == 40
    assert f"dev {MAIN}" in text.splitlines()[0]


def test_several_seeds_show_intervals() -> None:
    trials = [
        trial(
            3 * n + seed, {"loss.score_scale": 20}, [*RECOVERED, (120, 0.6 + n / 100 + seed / 1000)], point_number=n, seed=seed
        )
        for n in range(3)
        for seed in range(3)
    ]
    found = _shown(result([SCALE], trials, seeds=3))
    assert "[0.620, 0.622]" in sweep.terminal(found) and "0.621 [0.620, 0.622]" in sweep.markdown(found)
    page = sweep.render(found)
    assert "[0.620,\u00a00.622]" in Page(page).text
    assert Pictures(page).trials("polyline", "span") == {"0", "1", "2"}
    trials[8] = {**trials[8], "status": "failed"}  # a point that lost a seed is not to be chosen, however good the others
    assert [row.number for row in sweeptext.rows(result([SCALE], trials, seeds=3))] == [1, 0, 2]


def test_a_sweep_of_seeds_says_how_noisy_the_config_is() -> None:
    values = (0.610, 0.620, 0.633)
    trials = [trial(n, {}, [*RECOVERED, (120, value)], point_number=0, seed=n) for n, value in enumerate(values)]
    found = result([], trials, seeds=3, best_point=0)
    found["points"] = points(trials)
    expected = (
        "3 seeds of the same config: dev nDCG@10 is 0.621 on average, with a standard deviation of 0.0115, from 0.610 to 0.633."
    )
    assert sweeptext.verdict(found) == expected
    assert expected in " ".join(sweep.terminal(found).split()) and expected in Page(sweep.render(found)).text
    assert "[0.592, 0.650]" in sweep.terminal(found), "Student's t"
    trials[1:] = [{**one, "status": "failed"} for one in trials[1:]]
    found["points"] = points(trials)
    assert found["points"][0]["dev"][MAIN]["low"] is None and "[" not in sweep.terminal(found).splitlines()[1]


def test_markdown_escapes_names(asha: dict[str, Any]) -> None:
    text = sweep.markdown(asha)
    assert not re.search(r"(?<!\\)<img", text) and r"\<img" in text and r"a\|b \*c\*" in text and "\x1b" not in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| 1")}
    assert widths == {9}  # a name cannot add a column


def test_files_are_written_and_the_numbers_give_the_same_page(asha: dict[str, Any], tmp_path: Path) -> None:
    sweep.write(asha, out=Folder.of(str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.html", "sweep.json", "sweep.md"]
    again = json.loads((tmp_path / "sweep.json").read_text())
    assert again == asha and (tmp_path / "sweep.html").read_text() == sweep.render(again)


# -- the page ---------------------------------------------------------------------------------------


def test_the_page_escapes_everything_and_runs_its_own_script_only(asha: dict[str, Any]) -> None:
    text = sweep.render(asha)
    page = Page(text)
    assert not {"img", "link", "iframe"} & set(page.tags) and page.tags.count("script") == 1
    assert not {"src", "href", "onerror", "onclick"} & page.attributes
    assert "<img src=x onerror=alert(1)>" in page.text and "url(" not in text and "@import" not in text
    script = re.search(r"<script>(.*?)</script>", text, re.S)
    assert script is not None and "img" not in script[1]
    allowed = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'" in text


def test_every_trial_is_drawn_and_stopped_ones_end(asha: dict[str, Any]) -> None:
    drawn = Pictures(sweep.render(asha))
    ran = {str(n) for n in range(11)}
    assert drawn.trials("polyline", "best") >= {"6"} and drawn.trials("polyline", "default") == {None, "0"}  # None: the key
    assert drawn.trials("polyline", "end") == {"7", "8", "9", "10", "11"}  # stopped, and the one that failed
    assert {number for tag, _, number in drawn.drawn if tag == "circle"} == ran
    made = pictures.curves(asha)
    assert made is not None
    ends = {line.point: line.points[-1][0] for line in made[0].lines}
    assert len({ends[n] for n in range(7, 11)}) == 1 and ends[7] < ends[6] == made[0].right
    assert made[1] == "All trials have in common, at the start: dev nDCG@10 (updates) 0.200 (0) → 0.540 (60)."
    parallel = pictures.parallel(asha)
    assert parallel is not None and {line.point for line in parallel.plot.lines} == set(range(11))
    assert [axis.title.text for axis in parallel.axes] == [
        "curriculum", "score_scale", "learning_rate", "reinforced", f"dev {MAIN}",
    ]  # fmt: skip
    # Trial 4 has no mixture: it passes below that axis, and the page says so.
    heights = {line.point: line.points[3][1] for line in parallel.plot.lines}
    assert heights[4] == parallel.unset and max(h for n, h in heights.items() if n != 4) <= parallel.plot.bottom


def test_a_common_start_far_below_is_told_and_not_drawn() -> None:
    trials = [trial(n, {}, [*RECOVERED, (80, 0.70 + n / 100), (120, 0.72 + n / 100)]) for n in range(3)]
    made = pictures.curves(_shown(result([SCALE], trials)))
    assert made is not None and made[1].endswith("0.200 (0) → 0.500 (60), not drawn.")
    assert all(len(line.points) == 2 for line in made[0].lines)
    heights = [y for line in made[0].lines for _, y in line.points]
    assert max(heights) - min(heights) > 0.8 * (made[0].bottom - made[0].top)


def test_a_field_is_drawn_by_value_with_the_default_as_a_line(asha: dict[str, Any]) -> None:
    made = {one.column.title: one for one in fieldplots.field_plots(asha)}
    assert set(made) == {"curriculum", "score_scale", "learning_rate", "reinforced"} and made["reinforced"].unset == 1
    dots = {dot.point: dot for dot in made["learning_rate"].plot.dots}
    xs = [dots[n].x for n in range(11)]
    assert xs == sorted(xs) and xs[2] - xs[1] == pytest.approx(xs[9] - xs[8], abs=0.2)  # even on a log axis
    ys = [dots[n].y for n in range(11)]
    assert ys == sorted(ys, reverse=True)  # at 80 updates the metric grows with the number, stopped or not
    (line,) = [one for one in made["learning_rate"].plot.lines if one.kind == "help"]
    assert line.points[0][1] == dots[0].y == line.points[1][1]
    medians = [one for one in made["reinforced"].plot.lines if one.kind == "medians"]
    assert made["reinforced"].curve == "value" and len(medians[0].points) == 8
    assert made["learning_rate"].curve == "third" and made["curriculum"].curve == "value"


def test_named_alternatives_show_their_steps(asha: dict[str, Any]) -> None:
    (found,) = fieldplots.strips(asha)
    paper, evil = found["rows"]
    assert (paper["label"], evil["label"]) == ("paper", EVIL) and (paper["points"], evil["points"]) == (6, 5)
    assert [share for _, share, _ in paper["steps"]] == [50.0, 16.67, 33.33]
    assert paper["steps"][2][2] == "step 3: updates 80 to 120, dev nDCG@10 0.592"
    assert paper["mean"] == pytest.approx(0.55 + 0.002 * 5) and paper["low"] < paper["mean"] < paper["high"]
    assert paper["change"]["difference"] == pytest.approx(0.01)


def test_size_against_quality_is_there_only_where_sizes_differ(asha: dict[str, Any]) -> None:
    assert "Size against quality" not in Page(sweep.render(asha)).text
    size = {"layers": 2, "index": "exact", "passages_per_second": None}
    trials = [
        {**one, "size": {**size, "dim": dim, "bytes_per_passage": 4.0 * dim}}
        for one, dim in zip(ended([0.60, 0.59, 0.58], [{}, {}, {}]), (384, 192, 384), strict=True)
    ]
    found = _shown(result([field("student.dims", "choice", ["[384]", "[192]"])], trials))
    page = sweep.render(found)
    assert "Size against quality" in Page(page).text
    assert Pictures(page).trials("circle", "front") == {"0", "1"}
    plot = fieldplots.front_plot(found)
    assert plot is not None and [text.text for text in plot.texts[:-1]] == ["1", "0"]
    (joined,) = plot.lines
    assert [(x, y) for x, y in joined.points] == [(dot.x, dot.y) for dot in plot.dots if "front" in dot.kind.split()]


def test_one_trial_and_far_values_are_drawn_whole() -> None:
    alone = _shown(result([SCALE, RATE], ended([0.6], [{"loss.score_scale": 20}])))
    page = Page(sweep.render(alone))
    assert "All fields at once" not in page.text and "Learning curves" in page.text
    points = [{"curriculum.*.train.learning_rate": 1e-5 * (n + 1)} for n in range(10)]
    found = _shown(result([RATE], ended([0.6, 0.05, *(0.6 + n / 100 for n in range(8))], points)))
    assert fieldplots.below(found) == [(1, 0.05)] and "trial 1 (0.050)" in Page(sweep.render(found)).text
    (plot,) = fieldplots.field_plots(found)
    low = next(dot for dot in plot.plot.dots if dot.point == 1)
    assert low.y == plot.plot.bottom and "below" in low.kind.split() and "0.050" in low.title


# -- geometry ---------------------------------------------------------------------------------------


def test_scales_ticks_and_texts() -> None:
    log = scale([1e-5, 1e-4], 0, 100, log=True)
    assert [log.at(v) for v in (1e-5, 10**-4.5, 1e-4, 1.0)] == [0, 50, 100, 100]
    assert [tick.text for tick in log.ticks(5)] == ["1e−5", "2e−5", "5e−5", "1e−4"]
    assert log_ticks(1e-6, 1.0, 4) == pytest.approx([1e-6, 1e-4, 1e-2, 1.0])
    assert tick_texts([0.5, 0.55, 0.6]) == ["0.50", "0.55", "0.60"] and plain(12345.0) == "12,345" and plain(-0.5) == "−0.5"
    assert scale([3.0], 0, 10).at(3.0) == 5 and scale([], 0, 10).at(0.5) == 5
    assert metric_scale([0.01, *(0.6 + n / 100 for n in range(9))], 0, 10).low > 0.5
    assert cut("a long name", 32) == "a lo…" and cut_front("a long name", 32) == "…name" and cut("short", 32) == "short"
    moved = apart([10, 11, 12, 50], least=15, top=0, bottom=60)
    assert (
        moved == [10, 25, 40, 55]
        and apart([58, 59], least=15, top=0, bottom=60) == [45, 60]
        and apart([], least=1, top=0, bottom=1) == []
    )
