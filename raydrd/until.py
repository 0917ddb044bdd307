"""A run up to a phase, for clusters where each phase has machines of its own; the whole run then goes on from there.

    prepare   data read and checked, models adopted, corpus and training queries tokenized
    embed     the first candidates of the training queries are found; what must be trained to find them is trained
    score     teachers are trained and tried, and have scored all that the first training lists need
    train     all trainings of the student are done; nothing is measured on test, nothing published

The recipe itself runs, over a store that ends it before the first stage of a later phase. So a part is always the
beginning of the run, and what it makes is what the whole run finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydrd.flow.lab import Lab, open_lab
from raydrd.flow.retrieve import tokens
from raydrd.publish import measured
from raydrd.recipes import RECIPES
from raydrd.spine.progress import say
from raydrd.spine.store import Artifact, Stage, Store, identify

# What is there after each phase.
PHASES = {
    "prepare": "data, models and tokens",
    "embed": "the first candidates of the training queries",
    "score": "the teachers' scores for the first training lists",
    "train": "all trainings of the student",
}
_ORDER = (*PHASES, "publish")

# Labels of the first stages of a teacher's work: lists it is trained on, what it is tried on, what it scores, given scores.
_TEACHING = ("lists for ", "sample preflight", "score train", "take ready-made scores")


class Reached(Exception):
    """The phase is done; `next` is the label of the stage before which it ended. Not an error."""

    def __init__(self, next: str) -> None:
        super().__init__(next)
        self.next = next


def begins(stage: str, label: str) -> str | None:
    """The phase that a recipe's stage opens, or None: it belongs to whatever phase is going on."""
    if label.startswith(_TEACHING):
        return "score"
    if stage == "assemble" and not label.startswith("lists of warm-up"):  # a warm-up comes before the first candidates
        return "train"
    return None


@dataclass
class PartStore(Store):
    """A store that ends a run where a phase after `until` would do something."""

    until: str = "train"
    phase: str = "prepare"  # the one that is going on

    def enter(self, phase: str) -> None:
        self.phase = max(self.phase, phase, key=_ORDER.index)

    def run(self, function: Stage, /, label: str = "", **inputs: Any) -> Artifact:
        """As in a whole run.

        Raises:
            Reached: the stage belongs to a later phase than `until`.
        """
        label = label or function.__name__
        self.enter(begins(function.__name__, label) or self.phase)
        late = _ORDER.index(self.phase) > _ORDER.index(self.until)
        if late and identify(function, inputs)[0] not in self._seen:  # what this run has already is no work
            raise Reached(label)
        return super().run(function, label, **inputs)


def run_part(cfg: Any, store: PartStore) -> str:
    """Run a recipe's config up to the store's phase; the label of the stage with which the whole run goes on.

    Raises:
        InputError: config, data or models are wrong; before any work.
        StageError: a stage gave up.
    """
    lab = open_lab(cfg, store)
    _tokenize(lab)
    try:
        store.enter("embed")
        student = RECIPES[cfg.recipe].run(cfg, lab)
        store.enter("publish")
        measured(lab, student)
    except Reached as reached:
        return reached.next
    return "the report"


def _tokenize(lab: Lab) -> None:
    """Corpus and training queries, as every model of the run cuts them; models of one tokenizer share them."""
    teachers = [one for teacher in lab.teachers.values() for one in (teacher, *teacher.members)]
    for model in (lab.start, lab.original, *(one.model for one in teachers if one.model is not None)):
        tokens(lab.store, model, lab.data, "corpus")
        tokens(lab.store, model, lab.train_data, "queries/train")


def tell(store: PartStore, name: str, following: str, seconds: float) -> None:
    """Say what is finished, and with what the run goes on."""
    fresh = sum(not one.reused for one in store.journal)
    say(f"\n{name}: {store.until} is finished: {PHASES[store.until]}")
    say(f"{seconds:.0f} s; {fresh} stages made, {len(store.journal) - fresh} found in {store.root.uri}")
    say(f"the whole run (the same command without --until) goes on with: {following}")
