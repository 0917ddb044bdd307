"""The processes of a run, found by the session that their driver began, and how each kind of them is killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def of_session(leader: int) -> list[int]:
    """Processes of the session that `leader` began, itself among them: Ray moves its own into other groups, not sessions."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                fields = _stat(int(entry.name))
                if int(fields[3]) == leader and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def of_cluster(cluster: Any) -> list[int]:
    """Processes that the raylets of a `ray.cluster_utils.Cluster` started."""
    raylets = {pid for node in cluster.list_all_nodes() for pid in _raylets(node)}
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent(int(entry.name)) in raylets]


def parent(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    with suppress(OSError, IndexError):
        return int(_stat(pid)[1])
    return 0


def kill(pids: list[int]) -> None:
    """SIGKILL, whoever of them is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def clear(leader: int, patience: float) -> int:
    """Wait until a session is empty, then kill what is left of it; how many were left."""
    end = time.monotonic() + patience
    while time.monotonic() < end and of_session(leader):
        time.sleep(0.2)
    left = of_session(leader)
    kill(left)
    return len(left)


def node_of(cluster: Any, pid: int) -> Any:
    """The worker node (of `ray.cluster_utils.Cluster`) whose raylet started this process; none on the head."""
    raylet = parent(pid)
    return next((node for node in cluster.worker_nodes if raylet in _raylets(node)), None)


def _raylets(node: Any) -> list[int]:
    return [one.process.pid for one in node.all_processes.get("raylet", [])]


def _stat(pid: int) -> list[str]:
    """state, parent, group, session ... of /proc/PID/stat: what follows the name, which may hold anything."""
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
