"""The stages of a run, on the user's own data and models: what the store holds already, and what a run would make.

The recipe itself runs, as in a dry run, but data and models are opened for real: an identity is a digest of inputs, so
the results of a run are known by their ids before they are made, and looked for in the store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from raydrd.dry import ASIDE, DryStore
from raydrd.flow.lab import Lab, open_lab
from raydrd.outline import artifacts_in, depth_of
from raydrd.publish import measured
from raydrd.recipes import RECIPES
from raydrd.setting import Setting
from raydrd.spine.store import MANIFEST, Artifact, Stage, Store, identify

# Cheap, and what all sizes come from: made while planning, and kept for the run.
DATA = ("load", "sample_dev", "sample_queries", "make_queries")
MODELS = ("adopt", "adopt_late", "import_teacher")


@dataclass(frozen=True)
class Asked:
    """A stage that a run asks for.

    made: its result, without content where `held` is false. aside: `dev` or `preflight`, as in a dry run.
    """

    function: Stage
    label: str
    inputs: dict[str, Any]
    made: Artifact
    held: bool
    aside: str

    @property
    def name(self) -> str:
        return self.function.__name__


@dataclass
class PlanStore(DryStore):
    """A store that makes data and models, finds what was made before, and takes down everything else."""

    asked: dict[str, Asked] = field(default_factory=dict)
    lab: Lab | None = None
    opening: float = 0.0  # seconds spent in stages that were made here

    def run(self, function: Stage, /, label: str = "", **inputs: Any) -> Artifact:
        id_, _ = identify(function, inputs)
        if id_ in self._seen:
            return self._seen[id_]
        name, above = function.__name__, artifacts_in(inputs)
        home = self.root / name / id_
        held = home.exists(MANIFEST)
        if held or name in DATA + MODELS:
            aside = ASIDE.get(label, next((one.manifest["aside"] for one in above if one.manifest["aside"]), ""))
            made = self._opened(function, label, inputs) if not held else self.open(home)
            manifest = {**made.manifest, "aside": aside, "metrics": {"depth": depth_of(inputs), **made.metrics}}
            self._seen[id_] = made = replace(made, manifest=manifest)
        else:
            made = super().run(function, label, **inputs)
        if self.lab is not None:
            self.lab.dry = not held  # what is there can be read: a trial of a teacher then decides as it will in the run
        self.asked[id_] = Asked(function, label or name, inputs, made, held, made.manifest["aside"])
        return made

    def _opened(self, function: Stage, label: str, inputs: dict[str, Any]) -> Artifact:
        began = time.monotonic()
        made = Store.run(self, function, label, **inputs)
        self.opening += time.monotonic() - began
        return made


@dataclass(frozen=True)
class Walk:
    """A run as it would go: its lab, its stages by id in their order, and the seconds it takes to open anything."""

    lab: Lab
    asked: dict[str, Asked]
    opening: float


def walk(cfg: Setting, store: Store, *, began: float) -> Walk:
    """Go through the recipe on the user's data; `began` is when the command did, on the monotonic clock.

    Raises:
        InputError: config, data or models are wrong; as a run would say it.
    """
    plan = PlanStore(store.root, store.cluster)
    lab = plan.lab = open_lab(cfg, plan)
    opening = time.monotonic() - began - plan.opening
    lab.dry = True
    measured(lab, RECIPES[cfg.recipe].run(cfg, lab))
    return Walk(lab, plan.asked, opening)
