"""Where and with what a result was made: recorded beside it, never part of its identity."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "ray", "pyarrow", "numpy", "faiss-gpu", "faiss-cpu", "bm25s", "ir-measures")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Versions, git commit, host, hardware and command line of this process."""
    return {
        "versions": {"python": platform.python_version(), "raydrd": _version("raydrd"), **_versions()},
        "git": _git(),
        "host": platform.node(),
        "hardware": f"{os.cpu_count()} x {_processor()}",
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _versions() -> dict[str, str]:
    return {name: found for name in _PACKAGES if (found := _version(name))}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = [line.partition(":")[2].strip() for line in text.split("\n") if line.startswith("model name")]
    return lines[0] if lines else platform.machine()


def _git() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
