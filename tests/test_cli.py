"""The command line: quick to answer, one clear line for every mistake, and never a traceback for the user's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raydrd import cli
from raydrd.cli import main
from tests.conftest import write_config


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from raydrd.cli import parser; parser().format_help()\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'transformers', 'numpy', 'pandas', 'faiss', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "raydrd.cli", "--help"], capture_output=True, text=True, timeout=60)
        seconds.append(time.monotonic() - began)
        if seconds[-1] < 0.5:
            break
    assert done.returncode == 0 and "raydrd run configs/quickstart.yaml" in done.stdout
    assert min(seconds) < 0.5


def _pickled(toy: Path, tmp_path: Path) -> str:
    home = tmp_path / "pickled"
    shutil.copytree(toy / "student", home)
    (home / "model.safetensors").unlink()
    (home / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    return str(home)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing config", "no.yaml: no such file; write the path of a config"),
        ("unknown field", "toy.yaml: curriculum.0.train.lerning_rate: unknown field; did you mean 'learning_rate'?"),
        ("bad override", "override 'train': write path.to.field=value"),
        ("bad recipe", "recipe: 'cldr' is not one of cldrd"),
        ("bad data file", "corpus.jsonl:61: "),
        ("missing data", "nowhere"),
        ("missing model", "no such folder; write a model folder, a hub id or package:NAME"),
        ("pickled model", "pickled weights are never loaded: convert them"),
        ("impossible cut", "student.layers: 5: the model has 2 layers; write 1 to 2"),
        ("impossible source", "candidates.sources: only a bi_encoder teacher can search a corpus"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    case: str, message: str, toy: Path, toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "toy.yaml", toy_config)
    more: list[str] = []
    match case:
        case "missing config":
            config = str(tmp_path / "no.yaml")
        case "unknown field":
            more = ["curriculum.0.train.lerning_rate=1"]
        case "bad override":
            more = ["train"]
        case "bad recipe":
            more = ["recipe=cldr"]
        case "bad data file":
            shutil.copytree(toy / "data", tmp_path / "data")
            with (tmp_path / "data" / "corpus.jsonl").open("a") as stream:
                stream.write('{"_id": "d99", "text": oops}\n')
            more = [f"data.path={tmp_path / 'data'}"]
        case "missing data":
            more = [f"data.path={tmp_path / 'nowhere'}"]
        case "missing model":
            more = [f"student.model={tmp_path / 'nothing'}"]
        case "pickled model":
            more = [f"student.model={_pickled(toy, tmp_path)}"]
        case "impossible cut":
            more = ["student.layers=5"]
        case "impossible source":
            more = ["candidates.sources=[teacher]"]
    code = main(["run", config, *more, "--out", str(tmp_path / "run"), "--store", str(tmp_path / "store")])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("raydrd:") and message in said and "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2
    assert not (tmp_path / "run" / "report.json").exists()
    assert not list((tmp_path / "store").rglob("embed/*")), "work began before the mistake was found"


def test_a_mistake_in_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raydrd.cli", "run", str(tmp_path / "no.yaml")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("raydrd: ") and "no such file" in done.stderr


def test_a_stage_that_gives_up_is_exit_code_1(
    toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydrd.stages.embed import Embedder

    def broken(self: Any, shard: dict[str, Any]) -> dict[str, Any]:
        raise OSError("disk full")

    monkeypatch.setattr(Embedder, "__call__", broken)
    config = write_config(tmp_path / "toy.yaml", toy_config)
    assert main(["run", config, "--out", str(tmp_path / "run"), "--store", str(tmp_path / "store")]) == 1
    assert "shards failed; part-000000000000-000000000060.arrow: OSError: disk full" in capsys.readouterr().err


def test_search_finds_the_subject(toy_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(toy_run["folder"]), "violin chord melody", "-k", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == "violin chord melody"
    results = found["results"]
    assert [r["rank"] for r in results] == [1, 2, 3, 4, 5]
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    assert sum(20 <= int(r["doc_id"][1:]) < 25 for r in results) >= 3  # the music passages
    assert "music" in results[0]["text"] or any(w in results[0]["text"] for w in ("violin", "chord", "melody", "drum"))
    assert main(["search", str(toy_run["folder"]), "violin chord melody", "-k", "2"]) == 0
    assert f"  1  {results[0]['score']:.4f}  {results[0]['doc_id']}" in capsys.readouterr().out


def test_search_without_a_run_or_a_query(toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(tmp_path), "words"]) == 2
    assert main(["search", str(toy_run["folder"]), "  "]) == 2
    said = capsys.readouterr().err
    assert "no index here; write the folder of a finished run" in said and "write a query of at least one word" in said


def test_why_says_what_was_made_and_because_of_what(
    toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", str(toy_run["folder"])]) == 0
    assert "load: made load/" in capsys.readouterr().out
    assert main(["why", str(tmp_path)]) == 2
    assert "no report.json; write the folder of a finished run" in capsys.readouterr().err


def test_check(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(toy / "data")]) == 0
    assert "0 errors" in capsys.readouterr().out
    shutil.copytree(toy / "data", tmp_path / "data")
    with (tmp_path / "data" / "qrels" / "test.tsv").open("a") as stream:
        stream.write("q03\td00\tmany\n")
    assert main(["check", str(tmp_path / "data"), "--json"]) == 2
    assert any("qrels/test.tsv:62" in line for line in json.loads(capsys.readouterr().out)["errors"])
    assert main(["check", str(tmp_path / "nothing")]) == 2


def test_evaluate_measures_what_the_run_reported(
    toy_run: dict[str, Any], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydrd.spine.precision.cpu_has_bf16", lambda: False)
    home, data = str(toy_run["folder"] / "model"), str(toy / "data")
    more = ["--store", str(tmp_path / "store"), "--ray", "off"]
    assert main(["evaluate", home, "--data", data, "--json", str(tmp_path / "m.json"), *more]) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["queries"] == 12 and found["passages"] == 60
    for name, value in found["metrics"].items():
        assert value == pytest.approx(toy_run["systems"]["student"][name], abs=1e-6)
        assert found["intervals"][name][0] <= value <= found["intervals"][name][1]
    assert "nDCG@10" in capsys.readouterr().out
    assert main(["evaluate", home, "--data", data, "--split", "nothing", *more]) == 2


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert "cldrd" in capsys.readouterr().out


def test_overrides_may_stand_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = cli._parsed(["run", "c.yaml", "a.b=1", "--store", "x", "c.d=2", "--dry-run", "e=3"])
    assert (found.overrides, found.store, found.dry_run) == (["a.b=1", "c.d=2", "e=3"], "x", True)
    for wrong in (["run", "c.yaml", "--nothing=x"], ["run", "c.yaml", "--store", "x", "word"], ["search", "r", "q", "a=b"]):
        with pytest.raises(SystemExit) as caught:
            cli._parsed(wrong)
        assert caught.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err
