"""A recipe without each of its ideas, from one store: what `raydrd ablate` finds, as data.

The whole recipe and each variant are trained with the same seeds and compared on the test queries. What they share
(tokens, vectors, candidates, teacher scores) is made once. `report/ablation.py` says the result to people.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.flow.judge import values
from raydrd.flow.lab import Lab, another, check_setting, open_lab
from raydrd.flow.seeds import reseeded
from raydrd.flow.teachers import SCORING
from raydrd.naming import did_you_mean
from raydrd.recipes import RECIPES
from raydrd.session import opened, read_config
from raydrd.spine.progress import say
from raydrd.spine.provenance import provenance
from raydrd.spine.storage import Folder
from raydrd.spine.store import Record, Store
from raydrd.statistics import compare, holm

WHOLE, BEFORE = "all ideas", "student before"


@dataclass(frozen=True)
class Idea:
    """One variant of a recipe: the config without an idea, the fields that differ, and why it cannot be run, if so."""

    label: str
    cfg: Any
    changes: tuple[str, ...]
    refusal: str | None


@dataclass(frozen=True)
class Row:
    """One row of the table. `values`: float64 [S seeds, Q queries] by metric; the tuples hold one entry a seed."""

    label: str
    values: dict[str, NDArray[np.float64]]
    updates: tuple[int, ...] = ()
    students: tuple[str, ...] = ()
    journal: tuple[tuple[int, Record], ...] = ()  # (seed, stage): what no row above in the same branch asked for
    notes: tuple[str, ...] = ()
    refusal: str | None = None

    def means(self, metric: str) -> NDArray[np.float64]:
        """Float64 [Q]: each query's mean over the seeds."""
        found: NDArray[np.float64] = self.values[metric].mean(axis=0)
        return found


# -- which variants ---------------------------------------------------------------------------------


def ideas(cfg: Any, only: Sequence[str] = ()) -> list[Idea]:
    """The variants of this config, all or those of the ideas in `only` (`dark examples`, or a whole label).

    Raises:
        InputError: this config has no variant, or none of that name.
    """
    variants = RECIPES[cfg.recipe].variants(cfg)
    if not variants:
        others = [name for name in RECIPES if name != cfg.recipe]
        raise InputError(
            f"ablate: this config of recipe {cfg.recipe} has no idea that can be left out; "
            f"write one of recipe {', '.join(others[:-1])} or {others[-1]}, or add parts to this one"
        )
    names = list(dict.fromkeys([*(label.partition(":")[0] for label in variants), *variants]))
    kept: set[str] = set()
    for word in only:
        found = {label for label in variants if word.lower() in (label.lower(), label.partition(":")[0].lower())}
        if not found:
            hint = "write overrides before the options" if "=" in word else did_you_mean(word, names)
            raise InputError(f"ablate --only {word!r}: no such idea; {hint}")
        kept |= found
    return [_idea(cfg, label, variant) for label, variant in variants.items() if not only or label in kept]


def _idea(cfg: Any, label: str, variant: Any) -> Idea:
    changes = tuple(name for name in type(cfg).model_fields if getattr(cfg, name) != getattr(variant, name))
    try:
        # `model_copy` checks nothing: what leaving a part out makes impossible is found here, before it is paid for.
        validate(type(variant), variant.model_dump(), "config")
        check_setting(variant)
    except InputError as error:
        return Idea(label, variant, changes, " ".join(str(error).split()))
    return Idea(label, variant, changes, None)


# -- runs -------------------------------------------------------------------------------------------


def ablate(
    path: str,
    assignments: list[str],
    *,
    seeds: int = 1,
    only: Sequence[str] = (),
    out: str | None = None,
    store: str | None = None,
) -> dict[str, Any]:
    """The recipe of a config whole and without each of its ideas, measured and compared: a value that JSON holds.

    Args:
        seeds: trainings of every row; number s adds s to the seed of each of the student's training stages.
        only: ideas (or labels of variants) to leave out; none: each of them.
        out: the folder whose logs/ takes the logs of our own Ray.

    Returns:
        `rows` (before, whole, variants; means, standard deviations over seeds, updates, pairs that the teacher read),
        `effects` (whole less variant by query on `metric`, values averaged over seeds; `p_holm` is adjusted for all of
        them), `teacher_pairs`, `stages`, `warnings` and `notes`. A variant that is refused has a `refusal` and no means.

    Raises:
        InputError: config, data or models are wrong, there are no variants, or none of the name in `only`.
        StageError: a stage gave up.
    """
    if seeds < 1:
        raise InputError(f"ablate --seeds {seeds}: write 1 or more")
    began = time.monotonic()
    cfg = read_config(path, assignments)
    variants = ideas(cfg, only)
    total = len(variants) + 1
    with opened(cfg, out=Folder.of(out or f"runs/{cfg.name}-ablation"), store=store) as kept:
        lab = open_lab(cfg, kept)
        before = Row(BEFORE, values={name: v[None] for name, v in values(lab, lab.start, "before", whole=True).items()})
        whole = _row(lab, cfg, kept, WHOLE, seeds, f"1 of {total}")
        rows = [_variant(lab, one, kept.branch(), seeds, f"{n} of {total}") for n, one in enumerate(variants, 2)]
        pairs = {row.label: _pairs(kept, [row]) for row in (whole, *rows)}
        return {
            "name": cfg.name,
            "recipe": cfg.recipe,
            "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "command": " ".join(["raydrd", *sys.argv[1:]]),
            "seconds": round(time.monotonic() - began, 1),
            **_results(cfg, before, whole, rows, pairs),
            "teacher_pairs": _pairs(kept, [whole, *rows]),
            "seeds": seeds,
            "warnings": _warnings(whole, rows),
            "notes": _notes(cfg, whole, rows, seeds),
            "changes": {one.label: list(one.changes) for one in variants},
            "stages": [
                {"row": row.label, "seed": seed, **asdict(record)} for row in (whole, *rows) for seed, record in row.journal
            ],
            "config": cfg.model_dump(mode="json"),
            "store": kept.root.uri,
            "provenance": {**provenance(), "data_digest": lab.data.id, "precision": lab.precision},
        }


def _variant(lab: Lab, one: Idea, store: Store, seeds: int, place: str) -> Row:
    if one.refusal is None:
        return _row(lab, one.cfg, store, one.label, seeds, place)
    say(f"ablation {place}: {one.label}: refused: {one.refusal}")
    return Row(one.label, values={}, refusal=one.refusal)


def _row(lab: Lab, cfg: Any, store: Store, label: str, seeds: int, place: str) -> Row:
    """The recipe of `cfg` with every seed; of a variant also why it cannot be run, with what was made until then."""
    found: list[dict[str, NDArray[np.float64]]] = []
    students: list[str] = []
    updates: list[int] = []
    notes: list[str] = []
    journal: list[tuple[int, Record]] = []
    for seed in range(seeds):
        say(f"ablation {place}: {label}" + (f", seed {seed + 1} of {seeds}" if seeds > 1 else ""))
        try:
            own = another(lab, reseeded(cfg, seed), store)
            student = RECIPES[cfg.recipe].run(own.cfg, own)
            found.append(values(own, student, "after"))
        except InputError as error:
            if label == WHOLE:
                raise
            say(f"ablation {place}: {label}: refused: {error}")
            journal += [(seed, record) for record in store.journal[len(journal) :]]
            return Row(label, values={}, journal=tuple(journal), refusal=str(error))
        students.append(f"{student.stage}/{student.id}")
        updates.append(sum(int(segment["steps"]) for segment in own.segments))
        notes += own.notes[len(lab.notes) :]
        journal += [(seed, record) for record in store.journal[len(journal) :]]
    return Row(
        label=label,
        values={name: np.stack([one[name] for one in found]) for name in found[0]},
        updates=tuple(updates),
        students=tuple(students),
        journal=tuple(journal),
        notes=tuple(dict.fromkeys(notes)),
    )


# -- numbers ----------------------------------------------------------------------------------------


def _results(cfg: Any, before: Row, whole: Row, rows: list[Row], pairs: dict[str, dict[str, int]]) -> dict[str, Any]:
    names = list(before.values)
    main, evaluation = names[0], cfg.evaluation
    effects: list[dict[str, Any]] = []
    for row in rows:
        if row.refusal is None:
            result = compare(whole.means(main), row.means(main), seed=evaluation.seed, samples=evaluation.samples)
            effects.append({"without": row.label, **asdict(result)})
    for effect, p in zip(effects, holm([effect["p"] for effect in effects]), strict=True):
        effect["p_holm"] = p
    kinds = {BEFORE: "before", WHOLE: "whole"}
    return {
        "metric": main,
        "metrics": names,
        "queries": int(before.values[main].shape[1]),
        "samples": evaluation.samples,
        "seed": evaluation.seed,
        "rows": [
            {"label": row.label, "kind": kinds.get(row.label, "variant"), **_numbers(row), "pairs": pairs.get(row.label)}
            for row in (before, whole, *rows)
        ],
        "effects": effects,
    }


def _numbers(row: Row) -> dict[str, Any]:
    """What is said of one row. `std` over seeds has n - 1 below the line, and is None of a single one."""
    by_seed = {name: [float(v) for v in values.mean(axis=1)] for name, values in row.values.items()}
    return {
        "refusal": row.refusal,
        "mean": {name: float(np.mean(v)) for name, v in by_seed.items()},
        "std": {name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in by_seed.items()},
        "by_seed": by_seed,
        "updates": list(row.updates),
        "students": list(row.students),
        "made": sum(not record.reused for _, record in row.journal),
    }


def _pairs(store: Store, rows: Sequence[Row]) -> dict[str, int]:
    """Pairs (of a query and a passage, or of two passages) that teachers read: `needed`, and `made` by this command.

    Of a variant, those that the whole recipe had not asked for. What lay in the store is needed and not made, so that
    `needed` is the same when the command is run again.
    """
    records = {record.id: record for row in reversed(rows) for _, record in row.journal if record.name in SCORING}
    counts = {id_: int(store.find(record.name, id_).metrics["pairs"]) for id_, record in records.items()}
    return {"needed": sum(counts.values()), "made": sum(n for id_, n in counts.items() if not records[id_].reused)}


def _warnings(whole: Row, rows: list[Row]) -> list[str]:
    """What makes an effect something else than that of an idea."""
    found = []
    for row in (row for row in rows if row.refusal is None):
        if row.updates != whole.updates:
            found.append(
                f"{row.label}: {_listed(row.updates)} updates, {WHOLE} have {_listed(whole.updates)}: "
                "its effect is not that of the idea alone"
            )
        if all(np.array_equal(row.values[name], values) for name, values in whole.values.items()):
            found.append(f"{row.label}: the same values as {WHOLE} on every query; in this config the idea changes nothing")
    return found


def _listed(updates: Sequence[int]) -> str:
    return " / ".join(f"{n:,}" for n in dict.fromkeys(updates))


def _notes(cfg: Any, whole: Row, rows: list[Row], seeds: int) -> list[str]:
    found = [] if seeds > 1 else ["one seed: an effect holds the luck of one training too; add --seeds 3"]
    if not any(record.name in SCORING for _, record in whole.journal):
        found.append("this teacher reads no pairs of texts: its scores are ready-made or products of stored vectors")
    chosen = {row.label for row in rows}
    if skipped := [label for label in RECIPES[cfg.recipe].variants(cfg) if label not in chosen]:
        found.append(f"not run (--only): {', '.join(skipped)}")
    return [*found, *(f"{row.label}: {note}" for row in (whole, *rows) for note in row.notes)]
