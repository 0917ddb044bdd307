"""Metrics of a run."""

from __future__ import annotations

from raydrd.flow.lab import Lab
from raydrd.spine.store import Artifact
from raydrd.stages.evaluate import evaluate


def judge(lab: Lab, run: Artifact, data: Artifact, name: str, label: str) -> Artifact:
    metrics = list(lab.cfg.evaluation.metrics)
    return lab.store.run(evaluate, f"evaluate {label}", run=run, data=data, name=name, metrics=metrics)
