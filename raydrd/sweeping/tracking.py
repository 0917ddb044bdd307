"""Curves of trials for TensorBoard (always), MLflow and Weights & Biases (where asked for): the driver writes them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydrd.errors import InputError
from raydrd.spine.progress import remark
from raydrd.spine.storage import Folder

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
SENT = "tracked.json"  # which trials MLflow and W&B have: a sweep that goes on sends none twice


def check_packages(kinds: Sequence[str], path: str) -> None:
    """Raises InputError where a tracker that is asked for is not installed."""
    for kind in kinds:
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise InputError(f"{path}: tracking: {kind} is not installed; pip install {PACKAGES[kind]}, or leave it out")


class Tracking:
    """Whoever follows the trials. TensorBoard's files are written anew by every call of the command."""

    def __init__(self, kinds: Sequence[str], out: Folder, name: str) -> None:
        self.kinds, self.out, self.name = tuple(kinds), out, name
        (out / "tensorboard").delete()
        self.aside = None if out.is_local else tempfile.TemporaryDirectory()
        self.board = Path(self.aside.name if self.aside else (out / "tensorboard").uri)
        self.writers: dict[int, Any] = {}
        self.written: dict[int, int] = {}
        self.sent: dict[str, list[str]] = out.read_json(SENT) if out.exists(SENT) else {}
        self.notes: list[str] = []
        self.lost: set[str] = set()  # trackers that failed

    def reported(self, number: int, record: dict[str, Any]) -> None:
        """Scalars of the looks at dev that are new, over the updates of the method."""
        from tensorboardX import SummaryWriter

        if number not in self.writers:
            self.writers[number] = SummaryWriter(str(self.board / f"{number:03d}"), write_to_disk=True)
            self.writers[number].add_text("trial", record["label"])
            self.written[number] = 0
        for report in record["reports"][self.written[number] :]:
            for metric, value in report["dev"].items():
                self.writers[number].add_scalar(_tag(metric), value, report["updates"])
        self.written[number] = len(record["reports"])
        self.writers[number].flush()

    def ended(self, number: int, record: dict[str, Any]) -> None:
        """The trial's curve is whole: it is closed, sent to an object store, and to MLflow and W&B once."""
        if record["status"] == "refused":
            return
        self.reported(number, record)
        self.writers.pop(number).close()
        if self.aside is not None:
            (self.out / "tensorboard" / f"{number:03d}").upload(self.board / f"{number:03d}")
        mark = f"{number:03d}-{record['key']}"
        for kind in self.kinds:
            if kind in self.lost or mark in self.sent.get(kind, []):
                continue
            try:
                (_to_mlflow if kind == "mlflow" else _to_wandb)(self.name, record)
            except Exception as error:  # not logged in, a server that is away: no reason to end a sweep
                self._lose(kind, error)
                continue
            self.sent.setdefault(kind, []).append(mark)
            self.out.write_json(SENT, self.sent)

    def _lose(self, kind: str, error: Exception) -> None:
        why = " ".join(str(error).split()) or type(error).__name__
        self.lost.add(kind)
        self.notes.append(f"tracking: {kind} failed and is left out ({why}); the same command again sends what it lacks")
        remark(self.notes[-1])

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        if self.aside is not None:
            self.aside.cleanup()


def _tag(metric: str) -> str:
    """Neither TensorBoard nor MLflow takes an @ in a name."""
    return f"dev/{metric.replace('@', '_at_')}"


def _parameters(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": record["seed"]}
    for name, value in record["point"].items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def _to_mlflow(name: str, record: dict[str, Any]) -> None:
    import mlflow

    mlflow.set_experiment(name)
    with mlflow.start_run(run_name=f"{record['number']:03d} {record['label']}"[:250]):
        # A name there takes no *.
        mlflow.log_params({key.replace("*", "all"): value for key, value in _parameters(record).items()})
        mlflow.set_tags({"status": record["status"], "student": record["student"] or ""})
        for report in record["reports"]:
            found = {_tag(metric): value for metric, value in report["dev"].items()}
            mlflow.log_metrics(found, step=report["updates"])


def _to_wandb(name: str, record: dict[str, Any]) -> None:
    import wandb

    config = {**_parameters(record), "status": record["status"]}
    run = wandb.init(
        project=name, name=f"{record['number']:03d} {record['label']}"[:120], config=config, reinit="finish_previous"
    )
    for report in record["reports"]:
        run.log({"updates": report["updates"], **{f"dev/{metric}": value for metric, value in report["dev"].items()}})
    run.finish()
