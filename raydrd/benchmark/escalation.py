"""What a share of an expensive teacher's calls buys: the quality of its ranking, and of a student, share by share.

`python jobs/escalation.py CONFIG --shares 0,0.1,0.3,1.0` runs a config whose teacher is `kind: escalate` once for each
share, from one store: what one share asked the expensive teacher is known to the next. Share 0 is the cheap teacher alone,
share 1 the expensive one. Both rankings are of the test queries: the teacher's own over what it re-ranks there, and that
of the student that it taught. Differences to share 1 are paired by query.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import InputError, StageError
from raydrd.flow.judge import judge, values
from raydrd.flow.lab import Lab, check_setting, open_lab
from raydrd.flow.retrieve import mine, retrieve
from raydrd.flow.seeds import reseeded
from raydrd.flow.teach import ready, teacher_run
from raydrd.recipes import RECIPES
from raydrd.session import opened, read_config
from raydrd.setting import Escalation
from raydrd.spine.progress import say
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store
from raydrd.stages.score import flat
from raydrd.stages.shards import parts_of
from raydrd.statistics import bootstrap_interval, compare

Values = NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table; 2 when the command or the config must be changed, 1 when a stage gave up."""
    parser = argparse.ArgumentParser(
        prog="jobs/escalation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="a config whose teacher is kind: escalate")
    parser.add_argument("overrides", metavar="FIELD=VALUE", nargs="*", help="as for raydrd run")
    parser.add_argument("--shares", default="0,0.1,0.3,1.0", help="shares of all candidates, 0 to 1 (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each student; values are averaged over them")
    parser.add_argument("--no-student", action="store_true", help="the teacher's own ranking alone")
    parser.add_argument("--store", help="as for raydrd run")
    parser.add_argument("--out", metavar="FILE", help="where the numbers are written as JSON, too")
    options = parser.parse_intermixed_args(argv)
    try:
        seeds = 0 if options.no_student else options.seeds
        found = curve(options.config, options.overrides, shares=shares_of(options.shares), seeds=seeds, store=options.store)
    except InputError as error:
        print(f"escalation: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"escalation: {error}", file=sys.stderr)
        return 1
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return 0


def shares_of(text: str) -> tuple[float, ...]:
    """`0,0.1,1` as numbers; 1 is always among them, since it is what all are compared with.

    Raises:
        InputError: one is no number from 0 to 1.
    """
    try:
        found = {float(word) for word in text.split(",")}
    except ValueError:
        found = {-1.0}
    if not all(0 <= share <= 1 for share in found):
        raise InputError(f"--shares {text}: write numbers from 0 to 1 with commas between them, for example 0,0.1,0.3,1")
    return tuple(sorted(found | {1.0}))


def curve(
    path: str, assignments: list[str], *, shares: tuple[float, ...], seeds: int = 1, store: str | None = None
) -> dict[str, Any]:
    """The curve as data: `rows` by ascending share, with what was `spent` and for `teacher` and `student` the mean, its
    interval and the paired difference to share 1.

    spent: the different `pairs` that the expensive teacher read of `of` that the cheap one did; on `test` queries for the
    teacher's ranking, on `train` queries for one training of the student, all its rounds together (the mean over seeds).

    Args:
        seeds: trainings of the student for each share; 0: none.

    Raises:
        InputError: the teacher is no escalation, or whatever a run would refuse.
        StageError: a stage gave up.
    """
    cfg = read_config(path, assignments)
    if not isinstance(cfg.teacher, Escalation):
        raise InputError(f"{path}: teacher.kind: {cfg.teacher.kind}; a curve of shares needs kind: escalate")
    if cfg.preflight == "stop":  # a share that is not enough is part of the answer
        cfg = cfg.model_copy(update={"preflight": "warn"})
    found: dict[float, dict[str, Any]] = {}
    with opened(cfg, out=Folder.of(f"runs/{cfg.name}-escalation"), store=store) as kept:
        for share in shares:
            teacher = cfg.teacher.model_copy(update={"share": share, "pairs": None})
            own = cfg.model_copy(update={"teacher": teacher})
            check_setting(own)
            say(f"share {share:g}")
            found[share] = _measured(own, kept, seeds)
    evaluation = cfg.evaluation
    rows = [_row(share, one, found[1.0], seed=evaluation.seed, samples=evaluation.samples) for share, one in found.items()]
    return {
        "name": cfg.name, "recipe": cfg.recipe, "metric": evaluation.metrics[0], "by": cfg.teacher.by, "seeds": seeds,
        "cheap": cfg.teacher.cheap.model, "expensive": cfg.teacher.expensive.model, "rows": rows,
        "queries": len(found[1.0]["teacher"]), "config": cfg.model_dump(mode="json"),
    }  # fmt: skip


def _measured(cfg: Any, store: Store, seeds: int) -> dict[str, Any]:
    """The first metric by test query of the teacher and the student, and what the expensive teacher read for them."""
    lab = open_lab(cfg, store.branch())
    metric, students, trainings = cfg.evaluation.metrics[0], [], []
    for seed in range(seeds):
        lab.cfg, lab.store = reseeded(cfg, seed), store.branch()  # a journal of this training alone
        student = RECIPES[cfg.recipe].run(lab.cfg, lab)
        students.append(values(lab, student, "after")[metric])
        trainings.append(_spent(lab.store, "train"))
    lab.store = store.branch()
    found = {"teacher": _teacher(lab, metric)}
    if students:
        found["student"] = np.mean(students, axis=0)
    each = {name: round(sum(one[name] for one in trainings) / max(1, seeds)) for name in ("pairs", "of")}
    return {**found, "spent": {"train": each, "test": _spent(lab.store, "test")}}


def _spent(store: Store, what: str) -> dict[str, int]:
    """Pairs that both teachers were asked about in the stages of this journal: `of` the cheap one, `pairs` the expensive."""
    made = {r.id for r in store.journal if r.name == "choose" and r.label.startswith(f"escalate {what}")}
    names = {f"choose/{id_}" for id_ in made}
    scored = [store.find(r.name, r.id) for r in store.journal if r.name in ("score_pairs", "score_vectors")]
    dear = [one for one in scored if one.manifest["inputs"]["candidates"]["artifact"] in names]
    cheap = [store.find("choose", id_).manifest["inputs"]["scored"]["artifact"].split("/") for id_ in made]
    return {"pairs": _different(dear), "of": _different([store.find(name, id_) for name, id_ in cheap])}


def _different(scored: list[Artifact]) -> int:
    """How many pairs these stages scored, those once that several asked the same teacher about: its book pays them once."""
    pairs: dict[str, list[NDArray[np.int64]]] = {}
    for one in scored:
        teacher = {name: value for name, value in one.manifest["inputs"].items() if name != "candidates"}
        for _, rows in parts_of(one).each():
            query_rows, doc_rows = flat(rows)
            pairs.setdefault(json.dumps(teacher, sort_keys=True), []).append((query_rows << 32) + doc_rows)
    return sum(len(np.unique(np.concatenate(own))) for own in pairs.values())


def _teacher(lab: Lab, metric: str) -> Values:
    before = retrieve(lab, lab.start, lab.data, "queries/test", k=lab.cfg.evaluation.depth, label="before")
    if not lab.teacher.is_trained:
        ready(lab, lab.teacher, mine(lab, lab.start, positives=True))
    run = teacher_run(lab, before)
    assert run is not None  # an escalation has models
    judged = judge(lab, run[0], lab.data, "queries/test", "teacher")
    table = pa.concat_tables(part for _, part in parts_of(judged).each())
    return np.asarray(table[metric].to_numpy(), dtype=np.float64)


def _row(share: float, own: dict[str, Any], whole: dict[str, Any], *, seed: int, samples: int) -> dict[str, Any]:
    row: dict[str, Any] = {"share": share, "spent": own["spent"]}
    for name in ("teacher", "student"):
        if name in own:
            low, high = bootstrap_interval(own[name], seed=seed, samples=samples)
            row[name] = {"mean": float(own[name].mean()), "low": low, "high": high}
            row[name]["against_all"] = asdict(compare(own[name], whole[name], seed=seed, samples=samples))
    return row


def markdown(found: dict[str, Any]) -> str:
    """The curve as a table."""
    names = [name for name in ("teacher", "student") if name in found["rows"][0]]
    metric = found["metric"]
    asked = {"teacher": "test", "student": "train"}  # queries whose pairs were read for it
    heads = ["share"]
    for name in names:
        heads += [f"{asked[name]} pairs read", f"{name}'s {metric}", "less that of share 1"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in found["rows"]:
        cells = [f"{row['share']:g}"]
        for name in names:
            one, spent = row[name], row["spent"][asked[name]]
            cells.append(f"{spent['pairs']:,} of {spent['of']:,}")
            cells.append(f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]")
            less = one["against_all"]
            cells.append("" if row["share"] == 1 else f"{less['difference']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    who = f"cheap: {found['cheap']}; expensive: {found['expensive']}; chosen by {found['by']}"
    many = f", {found['seeds']} seeds" if found["seeds"] > 1 else ""
    return "\n".join([*lines, "", f"{who}; {found['queries']:,} test queries{many}"])
