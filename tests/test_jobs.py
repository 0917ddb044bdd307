"""Jobs on a real head: they run there, a failing one says why in one line, and no run joins a cluster unasked."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.util import get_node_ip_address

from tests.conftest import write_config

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
COMMANDS: dict[str, tuple[str, list[str]]] = {  # a job, the verb it is, and what it adds
    "run.py": ("run", []),
    "prepare.py": ("run", ["--until", "prepare"]),
    "embed.py": ("run", ["--until", "embed"]),
    "score.py": ("run", ["--until", "score"]),
    "train.py": ("run", ["--until", "train"]),
    "ablate.py": ("ablate", []),
    "sweep.py": ("sweep", []),
    "evaluate.py": ("evaluate", []),
}


@dataclass(frozen=True)
class Head:
    """A Ray started with `ray start --head`, and the environment in which a person beside it works."""

    port: str  # other processes know the head by another name of this machine
    dashboard: str
    home: Path
    env: dict[str, str]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listens(port: int) -> bool:
    """Whether somebody takes calls there: the head's agent, which starts jobs, comes some seconds after the dashboard."""
    for address in ("127.0.0.1", get_node_ip_address()):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return True
    return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with a token, on ports of its own, whose folder is short: Ray's sockets lie in it."""
    home = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
    (home / "token").write_text("0123456789abcdef" * 4)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the `python` of a job is the first one on the head's path
        "RAY_TMPDIR": str(home),  # `ray.init()` looks here for a Ray to join
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAYDRD_CACHE": str(home / "cache"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else 30 s are waited for at the end
    }
    del env["PYTHONPATH"]  # the job has its code from --working-dir alone
    gcs, dashboard, agent, client = free_ports(4)
    command = ["ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--disable-usage-stats"]
    command += ["--object-store-memory=100000000", "--node-ip-address=127.0.0.1", f"--temp-dir={home}/ray"]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, cwd="/", stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while not (listens(dashboard) and listens(agent)):
            assert process.poll() is None and time.monotonic() < deadline, (home / "head.log").read_text()
            time.sleep(0.3)
        yield Head(str(gcs), f"http://127.0.0.1:{dashboard}", home, env)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=90)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def config(toy_config: dict[str, Any], tmp_path: Path) -> str:
    """A run of two updates that uses the cluster it finds itself on."""
    values = copy.deepcopy(toy_config)
    values["curriculum"] = values["curriculum"][:1]
    values["curriculum"][0]["train"]["max_steps"] = 2
    values["resources"] = {"ray": "auto", "train_workers": 0}
    values["preflight"] = "off"
    return write_config(tmp_path / "tiny.yaml", values)


def submit(head: Head, *entrypoint: str) -> subprocess.Popen[str]:
    command = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", str(ROOT), "--", "python", *entrypoint]
    return subprocess.Popen(command, env=head.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(job: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """The submitter's exit code, and the job's own log lines as it showed them."""
    said, _ = job.communicate(timeout=200)
    lines = said.split("\n")
    begin = next((n for n, line in enumerate(lines) if line.startswith("Running entrypoint")), None)
    assert begin is not None, said[-2000:]
    end = next(n for n, line in enumerate(lines) if n > begin and " -- WebSocket closed" in line)
    return job.returncode, lines[begin + 1 : end]


@pytest.mark.ray
@pytest.mark.timeout(600)  # three jobs, each with processes of its own; some 15 s each where nothing else runs
def test_a_job_runs_and_a_failing_one_says_why(head: Head, config: str, tmp_path: Path) -> None:
    where = ("--store", str(tmp_path / "store"), "--out", str(tmp_path / "run"))
    nowhere = ("--store", str(tmp_path / "no"), "--out", str(tmp_path / "nothing"))
    bad = submit(head, "jobs/run.py", config, "data.path=/no/such/folder", *nowhere)
    good = submit(head, "jobs/score.py", config, *where)
    code, log = ended(bad)
    assert code != 0 and log[0] == "raydrd: /no/such/folder: no such folder; write the folder that holds the collection"
    assert not (tmp_path / "no").exists()
    code, log = ended(good)
    assert code == 0, log
    assert "score is finished" in "\n".join(log) and not (tmp_path / "run" / "report.json").exists()

    code, log = ended(submit(head, "jobs/run.py", config, *where))  # goes on from there
    assert code == 0, log
    text = "\n".join(log)
    assert "\r" not in text and "\x1b" not in text  # lines, no bars and no colours
    told = {line[:34].strip(): line[34:].split()[0] for line in log if line[35:40].strip() in ("made", "reuse")}
    assert told["load"] == told["score train (teacher)"] == "reused"
    assert told["lists of step 1: 5/5/10"] == told["build index"] == "made"
    assert "student after" in text and f"model: {tmp_path / 'run'}/model" in text
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["config"]["resources"]["ray"] == "auto"
    (sent,) = (head.home / "ray").glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert {"raydrd", "jobs", "configs", "constraints.txt"} <= {p.name for p in sent.iterdir()}
    assert not {".venv", ".raydrd", "runs", "tests", "docs", ".git"} & {p.name for p in sent.iterdir()}


WHICH_RAY = """
import sys
from raydrd.config import Resources
from raydrd.spine.cluster import Cluster
import ray
if sys.argv[1] == "ours":
    cluster = Cluster(Resources(ray="auto"))
    cluster.start()
else:
    ray.init(log_to_driver=False)
print("joined", ray.get_runtime_context().gcs_address)
ray.shutdown()
"""


def joined(head: Head, how: str, **env: str) -> str:
    """The port of the Ray that a process of its own ends up in."""
    done = subprocess.run(
        [sys.executable, "-c", WHICH_RAY, how], env=head.env | env, cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return next(line.rpartition(":")[2] for line in done.stdout.splitlines() if line.startswith("joined"))


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_running_cluster_is_joined_when_it_is_named_and_never_by_chance(head: Head) -> None:
    assert joined(head, "plain") == head.port  # what Ray itself would do: join whatever runs here
    assert joined(head, "ours") != head.port
    assert joined(head, "ours", RAY_ADDRESS=f"127.0.0.1:{head.port}") == head.port


@pytest.mark.parametrize("job", COMMANDS)
def test_a_job_is_its_command(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, more = COMMANDS[job]
    called: list[list[str]] = []

    def main(argv: list[str]) -> int:
        called.append(argv)
        return 3

    monkeypatch.setattr("raydrd.cli.main", main)
    monkeypatch.setattr(sys, "argv", [job, "c.yaml", "a.b=1", "--store", "s3://b/s"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "jobs" / job), run_name="__main__")
    assert stopped.value.code == 3
    assert called == [[verb, "c.yaml", "a.b=1", "--store", "s3://b/s", *more]]
    assert len((ROOT / "jobs" / job).read_text().splitlines()) < 40


@pytest.mark.parametrize("option", ["--store", "--out"])
def test_a_job_keeps_nothing_in_the_copy_it_runs_in(
    option: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raydrd.cli import main

    copied = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    kept = {"--store": ["--out", str(tmp_path / "run")], "--out": ["--store", str(tmp_path / "store")]}[option]
    assert main(["run", config, "resources.ray=off", *kept]) == 2
    assert f"raydrd: {option} " in (said := capsys.readouterr().err) and "write a whole path" in said
    assert not list(copied.iterdir())
