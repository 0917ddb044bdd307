"""Ray says nothing to the person unless something is wrong; everything it writes is kept in the run folder."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any


def quiet_ray() -> None:
    """Settings that Ray reads when it is imported or started. What the user has set stays."""
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # else 2 s are lost at the end of each training
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class DivertedStderr:
    """File descriptor 2, to which Ray's C++ core writes, goes to a log; Python's `sys.stderr` stays with the person."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.python: Any = sys.stderr
        self.python.flush()
        person = os.dup(2)
        with (logs / "stderr.log").open("ab") as log:
            os.dup2(log.fileno(), 2)
        sys.stderr = os.fdopen(person, "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def restore(self) -> None:
        os.dup2(sys.stderr.fileno(), 2)
        sys.stderr.close()
        sys.stderr = self.python


def keep_logs(session: Path, target: Path) -> None:
    """Copy what a Ray session logged; its own folder goes when the machine cleans up."""
    source = session / "logs"
    if not source.is_dir():
        return
    for file in source.iterdir():
        if file.is_file() and file.stat().st_size > 0:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / file.name)
