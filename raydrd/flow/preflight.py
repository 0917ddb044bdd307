"""Is a teacher worth its scores? Tried on a few dev queries before the training queries are paid for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.flow.judge import judge
from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import bm25, retrieve
from raydrd.flow.teachers import Teacher
from raydrd.methods.diagnosis import fit_temperature, scale_problem, spread, verdict
from raydrd.setting import ReadyScores
from raydrd.spine.progress import say
from raydrd.spine.store import Artifact
from raydrd.stages.load import sample_dev, table
from raydrd.stages.score import rerank
from raydrd.stages.search import join_candidates
from raydrd.stages.shards import parts_of
from raydrd.stages.trial import labelled_pairs
from raydrd.statistics import bootstrap_interval, compare

_LOWEST, _HIGHEST = 1.1e-3, 0.99e3  # beyond: an end of fit_temperature's range
PAIRS_A_QUERY = 4
Scoring = Callable[[Artifact, Artifact, str], Artifact]  # (candidates, data, table) -> the same with teacher scores


def preflight(lab: Lab, teacher: Teacher, score: Scoring) -> None:
    """Try a teacher once: it re-ranks what BM25 and the student before find on the sampled dev collection.

    What it says goes into the report; a temperature is fitted to the dev labels and kept for `scale: fitted`.

    Raises:
        InputError: the teacher is not above the student and `preflight` is stop.
    """
    cfg, fitted = lab.cfg, teacher.cfg.scale == "fitted"
    identity = teacher.known_as
    done = identity in {one["identity"] for one in lab.preflights} and (teacher.cfg in lab.scales or not fitted)
    if done or isinstance(teacher.cfg, ReadyScores) or (cfg.preflight == "off" and not fitted):
        return
    tried = trial(lab)
    if tried is None:
        return
    data, pool, runs, depth = tried
    scored = score(pool, data, "queries/dev")
    runs[teacher.name] = lab.store.run(rerank, "re-rank preflight", scored=scored, k=depth)
    judged = {name: judge(lab, run, data, "queries/dev", f"preflight ({name})") for name, run in runs.items()}
    if lab.dry:  # nothing has been measured, so there is nothing to conclude
        lab.preflights.append({"identity": identity})
        lab.scales[teacher.cfg] = 1.0
        return
    values = {name: _values(one) for name, one in judged.items()}
    found: dict[str, Any] = {"identity": identity, "teacher": teacher.name, "queries": len(values["BM25"]), "depth": depth}
    found |= _conclusion(lab, teacher.name, values, *_scores(scored, data))
    if fitted:
        lab.scales[teacher.cfg], why = fitted_scale(found["temperature"])
        answered = why is None and "temperature" in (found["scale"] or "")  # too flat a softmax is what fitting mends
        found["scale"] = None if answered else "; ".join(filter(None, [found["scale"], why])) or None
    if not cfg.reads_scores():
        found["scale"] = None  # a scale changes no order
    lab.preflights.append(found)
    for line in (f"preflight: {found['verdict']}", *([f"preflight: {found['scale']}"] if found["scale"] else [])):
        say(line)
    if not found["ok"] and cfg.preflight == "stop":
        raise InputError(f"preflight: {found['verdict']}; or set preflight=warn to go on")


def trial(lab: Lab) -> tuple[Artifact, Artifact, dict[str, Artifact], int] | None:
    """What teachers are tried on: a sampled dev collection, candidates of BM25 and the student before, and these runs.

    The student as it is now is shown beside them where it has learnt something already. None without dev queries.
    """
    dev = lab.cfg.evaluation
    data = lab.store.run(
        sample_dev, "sample preflight", data=lab.data, passages=dev.dev_passages, queries=dev.preflight_queries, seed=dev.seed
    )
    if not table(data, "queries/dev").rows:
        say("preflight: there are no dev queries, so no teacher is tried before it is used")
        return None
    depth = dev.preflight_depth
    runs = {
        "BM25": bm25(lab, data, "queries/dev", k=depth, corpus=data),
        "student before": retrieve(lab, lab.start, data, "queries/dev", k=depth, label="preflight"),
    }
    pool = lab.store.run(join_candidates, "join preflight candidates", sources=list(runs.values()), depth=depth)
    if lab.student is not None and lab.student.id != lab.start.id:
        runs["student so far"] = retrieve(lab, lab.student, data, "queries/dev", k=depth, label="preflight, so far")
    return data, pool, runs, depth


def preflight_pairs(lab: Lab, teacher: Teacher, compare_pairs: Callable[[Artifact, Artifact], Artifact]) -> None:
    """Try a pairwise teacher once, on dev: a labelled positive against other candidates, asked in both orders.

    Raises:
        InputError: it is right no more often than a coin, and `preflight` is stop.
    """
    cfg = lab.cfg
    if cfg.preflight == "off" or teacher.identity in {one["identity"] for one in lab.preflights}:
        return
    tried = trial(lab)
    if tried is None:
        return
    data, pool, _, depth = tried
    pairs = lab.store.run(labelled_pairs, "preflight pairs", candidates=pool, data=data, name="queries/dev", each=PAIRS_A_QUERY)
    compared = compare_pairs(pairs, data)
    if lab.dry:
        lab.preflights.append({"identity": teacher.identity})
        return
    lists = [p for _, part in parts_of(compared).each() for p in part["probabilities"].to_pylist() if p]
    if not lists:
        say("preflight: no dev query has a labelled positive among its candidates, so the pairwise teacher is not tried")
        return
    right = np.array([np.mean([(p > 0.5) + 0.5 * (p == 0.5) for p in own]) for own in lists])
    low, high = bootstrap_interval(right, seed=cfg.evaluation.seed, samples=cfg.evaluation.samples)
    mean, ok = float(right.mean()), bool(right.mean() > 0.5)
    line = f"pairwise teacher {teacher.name}: right about {mean:.3f} [{low:.3f}, {high:.3f}] of labelled dev pairs, a coin 0.5"
    line += "" if ok else ": it has nothing to teach; choose a stronger teacher"
    row = {"system": teacher.name, "value": mean, "low": low, "high": high}
    lab.preflights.append(
        {
            "identity": teacher.identity, "teacher": teacher.name, "queries": len(right), "depth": depth, "ok": ok,
            "verdict": line, "metric": "pairs right", "rows": [row], "scale": None,
        }
    )  # fmt: skip
    say(f"preflight: {line}")
    if not ok and cfg.preflight == "stop":
        raise InputError(f"preflight: {line}; or set preflight=warn to go on")


def _conclusion(
    lab: Lab,
    name: str,
    values: dict[str, NDArray[np.float64]],
    scores: list[NDArray[np.float64]],
    positives: list[NDArray[np.bool_]],
) -> dict[str, Any]:
    metric, dev = lab.cfg.evaluation.metrics[0], lab.cfg.evaluation
    about = {
        system: (float(v.mean()), *bootstrap_interval(v, seed=dev.seed, samples=dev.samples)) for system, v in values.items()
    }
    difference = compare(values[name], values["student before"], seed=dev.seed, samples=dev.samples)
    ok, line = verdict(name, teacher=about[name], student=about["student before"], difference=difference, metric=metric)
    try:
        temperature = fit_temperature(scores, positives)
    except ValueError:  # no query with both a positive and another passage: nothing to fit to
        temperature = None
    return {
        "ok": ok,
        "verdict": line,
        "metric": metric,
        "rows": [{"system": s, "value": v, "low": low, "high": high} for s, (v, low, high) in about.items()],
        "spread": asdict(spread(scores)),
        "scale": scale_problem(scores),
        "temperature": temperature,
    }


def _values(judged: Artifact) -> NDArray[np.float64]:
    table_ = pa.concat_tables(part for _, part in parts_of(judged).each())
    return np.asarray(table_[next(name for name in table_.column_names if name != "query_row")].to_numpy())


def _scores(scored: Artifact, data: Artifact) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
    """Teacher scores of each dev query's candidates, and which of them are relevant."""
    rows = pa.concat_tables(part for _, part in parts_of(scored).each())
    queries = table(data, "queries/dev")
    judged = queries.slice(0, queries.rows).select(["doc_rows", "grades"]).take(rows["query_row"]).to_pylist()
    scores, positives = [], []
    for docs, own, query in zip(rows["doc_rows"].to_pylist(), rows["teacher_scores"].to_pylist(), judged, strict=True):
        relevant = [d for d, g in zip(query["doc_rows"], query["grades"], strict=True) if g > 0]
        scores.append(np.array(own, dtype=np.float64))
        positives.append(np.isin(docs, relevant))
    return scores, positives


def fitted_scale(temperature: float | None) -> tuple[float, str | None]:
    """What `scale: fitted` multiplies scores by: 1 / temperature; 1, and why, where the dev labels give no temperature.

    An end of the range that is looked at is none: 1000 times the scores would teach one passage a query and nothing
    else, a thousandth of them nothing at all.
    """
    if temperature is None:
        why = "no dev query has both a relevant and another passage"
    elif temperature <= _LOWEST:
        why = "the teacher sets all relevant dev passages apart, which any high enough scale would do"
    elif temperature >= _HIGHEST:
        why = "its scores say no more of the dev labels than none would"
    else:
        return 1.0 / temperature, None
    return 1.0, f"scale: fitted finds none, since {why}; its scores are used as they are"


def scale_of(lab: Lab, teacher: Teacher) -> float:
    """What multiplies this teacher's scores before a softmax.

    Raises:
        InputError: `scale: fitted` without dev labels to fit to.
    """
    if teacher.cfg.scale != "fitted":
        return float(teacher.cfg.scale)
    if teacher.cfg not in lab.scales:
        raise InputError("teacher.scale: fitted needs dev queries that the teacher can be tried on; write a number")
    return lab.scales[teacher.cfg]
