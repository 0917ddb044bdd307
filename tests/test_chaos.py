"""jobs/chaos.py in small: processes killed for real at drawn moments, and a comparison that sees what is wrong."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from raydrd.chaos.compare import artefacts, differences, reports_differ
from raydrd.chaos.main import again_early, in_time, main
from raydrd.chaos.moments import Kill, spread
from raydrd.chaos.notes import Notes, repeats
from raydrd.chaos.victims import clear, of_session
from tests.conftest import write_config
from tests.faults import long_config

JOB = Path(__file__).resolve().parents[1] / "jobs" / "chaos.py"


def test_moments_cover_the_whole_run_and_every_kind_has_its_turn() -> None:
    plans = spread(20, seconds=100.0, kinds=("driver", "actor"), runs=4, seed=3)
    assert [len(one) for one in plans] == [5, 5, 5, 5]
    kinds = [kill.kind for one in plans for kill in one]
    assert kinds.count("driver") == kinds.count("actor") == 10
    for one in plans:
        at = [sum(kill.wait for kill in one[: n + 1] if not kill.starting) for n in range(5) if not one[n].starting]
        assert at[-1] > 60.0 and at == sorted(at) and at[-1] <= 100.0
    assert plans == spread(20, seconds=100.0, kinds=("driver", "actor"), runs=4, seed=3)
    assert plans != spread(20, seconds=100.0, kinds=("driver", "actor"), runs=4, seed=4)
    assert sum(len(one) for one in spread(3, seconds=1.0, kinds=("driver",), runs=7, seed=0)) == 3


def test_a_kill_that_came_too_late_comes_early_in_the_next_run() -> None:
    late = [Kill("driver", 8.0, alone=True, starting=True), Kill("actor", 2.0)]
    assert again_early(late) == [Kill("driver", 4.0, alone=True), Kill("actor", 2.0)]


def test_kills_of_a_run_that_was_too_quick_fall_into_the_next_one() -> None:
    """The first run of all reads everything from a cold disk: those after it may take a tenth of its time."""
    late = [Kill("driver", 50.0), Kill("actor", 30.0, alone=True), Kill("driver", 20.0)]
    found = in_time(late, 8.0)
    assert [kill.kind for kill in found] == ["driver", "actor", "driver"] and found[1].alone
    assert sum(kill.wait for kill in found) < 8.0 and found[0].wait > found[1].wait > found[2].wait > 1.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--kinds", "driver,raylet"], "--kinds raylet: write some of driver,actor,worker,node"),
        (["--kinds", "actor"], "--kinds actor: resources.ray=off starts no such process"),
        (["--kinds", "worker", "resources.ray=auto"], "resources.train_workers=0 trains in the driver"),
        (["--kills", "0"], "at least one each"),
        (["data.nothing=1"], "data.nothing"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    config = write_config(tmp_path / "toy.yaml", toy_config)
    assert main([config, *more, "--work", str(tmp_path / "work")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


# -- the comparison sees what differs -------------------------------------------------------------


@pytest.fixture
def twin(toy_run: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    """The toy run's store and a copy of it."""
    shutil.copytree(toy_run["store"], tmp_path / "copy")
    return Path(toy_run["store"]), tmp_path / "copy"


def _one(store: Path, pattern: str) -> Path:
    return sorted(store.glob(pattern))[0]


def _vouched(path: Path) -> None:
    """Let the manifest say the size that the file now has: only its content is wrong."""
    home = next(folder for folder in path.parents if (folder / "manifest.json").exists())
    manifest = json.loads((home / "manifest.json").read_text())
    manifest["files"][path.relative_to(home).as_posix()] = path.stat().st_size
    (home / "manifest.json").write_text(json.dumps(manifest))


def test_a_copy_is_identical_also_when_cut_and_packed_otherwise(twin: tuple[Path, Path]) -> None:
    calm, copy = twin
    assert len(artefacts(calm)) > 20 and differences(calm, copy) == []
    path = _one(copy, "score_pairs/*/shards/part-*.parquet")
    rows = pq.read_table(path)
    lo, half = 0, rows.num_rows // 2
    home = path.parents[1]
    manifest = json.loads((home / "manifest.json").read_text())
    del manifest["files"][path.relative_to(home).as_posix()]
    path.unlink()
    for a, b in ((lo, half), (half, rows.num_rows)):
        part = path.with_name(f"part-{a:012d}-{b:012d}.parquet")
        pq.write_table(rows.slice(a, b - a), part, compression="none")
        manifest["files"][part.relative_to(home).as_posix()] = part.stat().st_size
    (home / "manifest.json").write_text(json.dumps(manifest))
    assert differences(calm, copy) == []


def test_one_other_score_is_seen(twin: tuple[Path, Path]) -> None:
    calm, copy = twin
    path = _one(copy, "score_pairs/*/shards/part-*.parquet")
    rows = pq.read_table(path)
    scores = rows["teacher_scores"].to_pylist()
    scores[1][2] += 1e-6
    pq.write_table(rows.set_column(3, rows.schema.field(3), pa.array(scores, rows.schema.field(3).type)), path)
    _vouched(path)
    found = differences(calm, copy)
    assert len(found) == 1 and found[0].startswith("score_pairs/") and "table shards differs" in found[0]


def test_one_other_weight_a_lost_artefact_and_a_cut_file_are_seen(twin: tuple[Path, Path]) -> None:
    calm, copy = twin
    weights = _one(copy, "train/*/out-*/model/model.safetensors")
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(torch.inf))
    save_file(tensors, weights, metadata={"format": "pt"})
    lost = _one(copy, "bm25_index/*/manifest.json")
    lost.unlink()
    cut = _one(copy, "embed/*/shards/part-*.arrow")
    cut.write_bytes(cut.read_bytes()[:-1])
    found = differences(calm, copy)
    assert [line.partition("/")[0] for line in found] == ["bm25_index", "embed", "train"]
    assert "only in the undisturbed run" in found[0] and "not the size" in found[1] and "model.safetensors differs" in found[2]


def test_another_metric_is_seen_and_another_speed_is_not(toy_run: dict[str, Any], tmp_path: Path) -> None:
    report = json.loads((toy_run["folder"] / "report.json").read_text())
    report["systems"]["student"]["passages_per_s"] = 1.0
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert reports_differ(toy_run["folder"], tmp_path) == []
    report["systems"]["student"]["nDCG@10"] += 1e-9
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert reports_differ(toy_run["folder"], tmp_path) == ["report.json: systems differs"]


# -- what was computed is counted by the models' own notes ----------------------------------------


def _notes(folder: Path, *lines: tuple[float, str, str, list[int]]) -> Notes:
    folder.mkdir()
    with (folder / "1.jsonl").open("w") as stream:
        for at, what, name, rows in lines:
            line: dict[str, Any] = {"at": at, "pid": 1, "what": "shard", "phase": what, "name": name, "out": "/s/score/x"}
            if what == "asked":
                line = {"at": at, "pid": 1, "what": what, "model": "Teacher", "attempt": name, "rows": [rows, rows]}
            stream.write(json.dumps(line) + "\n")
        stream.write('{"at": 99.0, "pid"')  # a process killed while it wrote
    return Notes(folder).look()


def test_repeats_in_flight_are_counted_and_those_of_finished_shards_are_wrong(tmp_path: Path) -> None:
    killed = [(1.0, "begin", "a", []), (1.1, "asked", "a", [0, 1, 2])]
    again = [(2.0, "begin", "b", []), (2.1, "asked", "b", [0, 1, 2]), (2.2, "end", "b", [])]
    found = repeats(_notes(tmp_path / "one", *killed, *again), "Teacher")
    assert vars(found) == {"asked": 6, "again": 3, "wrong": 0}
    orphan = (3.0, "end", "a", [])  # it went on while the new run had begun the same shard
    assert repeats(_notes(tmp_path / "two", *killed, *again, orphan), "Teacher").wrong == 0
    third = [(4.0, "begin", "c", []), (4.1, "asked", "c", [2, 3]), (4.2, "end", "c", [])]
    found = repeats(_notes(tmp_path / "three", *killed, *again, *third), "Teacher")
    assert vars(found) == {"asked": 8, "again": 4, "wrong": 1}


def test_victims_are_those_at_work_else_those_between_two_shards_of_the_stage_under_way(tmp_path: Path) -> None:
    def line(pid: int, what: str, phase: str, name: str, **more: str) -> str:
        return json.dumps({"at": 1.0, "pid": pid, "what": what, "phase": phase, "name": name, **more}) + "\n"

    done, now = "/s/embed/x", "/s/score_pairs/y"
    lines = [
        line(1, "stage", "begin", "old", home=done, stage="embed"),
        line(2, "shard", "begin", "a", out=f"{done}/shards"),
        line(2, "shard", "end", "a", out=f"{done}/shards"),
        line(1, "stage", "end", "old", home=done, stage="embed"),
        line(1, "stage", "begin", "new", home=now, stage="score_pairs", label="score train"),
        line(3, "shard", "begin", "b", out=f"{now}/shards"),
        line(3, "shard", "end", "b", out=f"{now}/shards"),
        line(1, "shard", "begin", "own", out=f"{now}/shards"),
        line(4, "shard", "begin", "c", out=f"{now}/shards"),
    ]
    (tmp_path / "notes.jsonl").write_text("".join(lines))
    notes = Notes(tmp_path).look()
    assert notes.stage(1) == "score train" and notes.stage(9) == "starting" and notes.began(1) and not notes.began(9)
    assert notes.busy("actor", [1, 2, 3, 4]) == [4]
    assert notes.busy("node", [1, 2, 3]) == [3]  # 4 was killed, 1 is the driver, 2 worked for another stage
    assert notes.busy("worker", [1, 2, 3, 4]) == [] and notes.busy("actor", [1, 2]) == []


def test_a_session_is_found_whole_and_cleared(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    started = "import subprocess as s; child = s.Popen(['sleep', '60'], process_group=0)"
    script = f"{started}; open({str(ready)!r}, 'w'); child.wait()"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    while not ready.exists():
        time.sleep(0.01)
    assert len(of_session(process.pid)) == 2 and os.getpid() not in of_session(process.pid)
    assert clear(process.pid, 0.0) == 2
    process.wait()
    end = time.monotonic() + 5
    while of_session(process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert of_session(process.pid) == []


def test_a_shard_whose_result_was_lost_with_its_node_is_not_made_twice(tmp_path: Path) -> None:
    from raydrd.spine.cluster import Seat
    from raydrd.spine.storage import Folder
    from tests.workers import Doubler

    marks, out, log = Folder.of(tmp_path / "marks"), Folder.of(tmp_path / "out"), tmp_path / "log"

    def ask(fault: str = "") -> dict[str, Any]:
        """What Ray does: an actor of its own each time, the same shard."""
        seat = Seat(
            worker=Doubler, arguments={"out": out, "log": str(log)}, threads=1, gpus=0.0, marks=marks, token="t", attempts=1
        )  # fmt: skip
        return seat({"item": [{"name": "a", "mark": "a", "lo": 0, "hi": 3, "fault": fault}]})["result"][0]

    first = ask()
    assert first["total"] == 3 and ask() == first  # also beyond the attempts that it has
    assert len(log.read_text().splitlines()) == 1
    marks.delete()
    assert "error" in ask("raise") and "killed its worker 1 times" in ask("raise")["error"]
    assert len(log.read_text().splitlines()) == 2  # an error is no result: its second attempt is one too many


@pytest.mark.parametrize("times", [3, 4])
def test_a_worker_that_dies_while_its_group_starts_is_tried_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import ControllerError

    import raydrd.stages.train as module
    from raydrd.config import Resources
    from raydrd.errors import StageError
    from raydrd.spine.cluster import Cluster
    from tests.training_jobs import make_job

    fits: list[int] = []

    def fit(*_: Any) -> None:
        fits.append(1)
        if len(fits) <= times:
            raise ControllerError(RuntimeError("The actor died unexpectedly"))

    monkeypatch.setattr(module, "_fit", fit)
    monkeypatch.setattr(module, "shared_or_refuse", lambda _: None)
    cluster, group = Cluster(Resources(ray="local")), module.Group(fewest=1, most=1, cpus=1, gpu=False)
    if times == 3:
        module.on_ray(cluster, make_job(tmp_path), group)
    else:
        with pytest.raises(StageError, match="training failed 4 times from step 0 on: (?s:.*)died unexpectedly"):
            module.on_ray(cluster, make_job(tmp_path), group)
    assert len(fits) == 4


def test_gradients_of_passages_that_lists_share_are_the_same_each_time() -> None:
    from raydrd.methods.losses import taken

    draw = torch.Generator().manual_seed(0)
    start, index_QN = torch.randn(64, 384, generator=draw), torch.randint(0, 64, (16, 32), generator=draw)
    weights = torch.randn(16, 32, 384, generator=draw)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = []
    for _ in range(20):
        rows = start.clone().requires_grad_()
        made = taken(rows, index_QN)
        assert torch.equal(made, rows[index_QN])
        (made * weights).sum().backward()
        found.append(rows.grad)
    torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)
    assert taken(start, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 384)


# -- for real -------------------------------------------------------------------------------------


def _short(home: Path, toy: Path, toy_config: dict[str, Any]) -> str:
    """The long run of tests/test_faults.py, shorter: it is made three times here."""
    path = Path(long_config(home, toy, toy_config, passages=300))
    values = yaml.safe_load(path.read_text())
    values["queries"]["count"] = 60
    values["curriculum"][0]["train"]["max_steps"] = 10
    values["resources"] |= {"rows_per_shard": 60, "pairs_per_shard": 200}
    return write_config(path, values)


def _job(config: str, *more: str, timeout: float) -> subprocess.CompletedProcess[str]:
    core = random.Random(config).choice(sorted(os.sched_getaffinity(0)))
    pin = ["taskset", "--cpu-list", str(core)] if shutil.which("taskset") else []
    command = [*pin, sys.executable, str(JOB), config, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.timeout(600)
def test_a_handful_of_kills_of_the_driver_ends_in_identical_artefacts(
    toy: Path, toy_config: dict[str, Any], tmp_path: Path
) -> None:
    config = _short(tmp_path, toy, toy_config)
    made = _job(config, "--kills", "3", "--runs", "1", "--json", str(tmp_path / "chaos.json"), timeout=590)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[-1] == "3 of 3 kills: identical artefacts"
    assert len(re.findall(r"^ +\d+ +\d+  driver .* started again$", made.stdout, re.MULTILINE)) == 3
    found = json.loads((tmp_path / "chaos.json").read_text())
    asked = found["undisturbed"]["work"]["CrossEncoderScorer"]
    assert asked["asked"] > 600 and asked["again"] == 0
    for run in found["runs"]:
        assert run["starts"] == len(run["kills"]) + 1 and run["work"]["CrossEncoderScorer"]["wrong"] == 0


@pytest.mark.ray
@pytest.mark.skipif(not os.environ.get("RAYDRD_SLOW"), reason="minutes where cores are busy: RAYDRD_SLOW=1 runs it")
@pytest.mark.timeout(600)
def test_a_node_removed_while_it_embeds_ends_in_the_vectors_of_this_process(
    toy: Path, toy_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydrd.chaos.disturbed import Place, carry_out

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what each actor of one core has
    open_cluster = runpy.run_path(str(JOB))["open_cluster"]
    arguments = ["--until", "embed", _short(tmp_path, toy, toy_config)]
    calm, hit = Place(tmp_path / "calm", arguments, spread=False), Place(tmp_path / "hit", arguments, spread=True)
    lines: list[dict[str, Any]] = []
    assert carry_out(calm, [], seed=0, patience=300, told=lines.append).error == ""
    ended = carry_out(
        hit, [Kill("node", 0.0, during="embed passages")], seed=0, patience=300, told=lines.append, open_cluster=open_cluster
    )
    assert ended.error == "" and ended.starts == 1 and not ended.unspent
    assert [(line["kind"], line["outcome"]) for line in lines] == [("node", "went on")]
    assert lines[0]["stage"] == "embed passages (student)"
    assert len(list(calm.store.glob("embed/*/shards/part-*"))) >= 6
    assert differences(calm.store, hit.store) == []
    made = repeats(Notes(hit.home / "notes").look(), "Embedder")
    assert made.asked - made.again == repeats(Notes(calm.home / "notes").look(), "Embedder").asked and made.wrong == 0
