"""LoRA: only small matrices learn, and what is saved is a plain model."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.models import adapters
from raydrd.models.adapters import Lora
from raydrd.stages.adopt import Student
from raydrd.training import checkpoint
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.loop import train_loop
from raydrd.training.step import Step
from tests.encoder_families import family_model
from tests.recipes import SCALE, inputs, made, open_store, refusal, run_toy, settings, steps
from tests.training_jobs import CPU, make_job, weights
from tests.worlds import tiny_encoder

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
SMALL = Lora(r=4, alpha=8)


def job(home: Path, kind: str = "qwen3", **changes: Any) -> Job:
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "model").exists():
        family_model(kind, home / "model") if kind != "bert" else tiny_encoder(home / "model")
    return make_job(home, lora=changes.pop("lora", SMALL), **changes)


def start(found: Job) -> dict[str, torch.Tensor]:
    file = Path(found.start.uri) / "model.safetensors"
    return {name.removeprefix("model."): value for name, value in load_file(file).items() if not name.startswith("lm_head")}


@needs_peft
@pytest.mark.parametrize("kind", ["llama", "qwen3", "modernbert", "bert"])
def test_what_is_saved_is_the_start_plus_matrices_of_a_small_rank(tmp_path: Path, kind: str) -> None:
    found = job(tmp_path, kind)
    found = replace(found, config=found.config.model_copy(update={"max_steps": 20, "learning_rate": 5e-3}))
    train_loop(found, Alone(), CPU)
    curve = found.out.read_json("curve.json")
    assert np.mean([row[1] for row in curve[-4:]]) < 0.9 * np.mean([row[1] for row in curve[:4]])
    before, after = start(found), weights(found)
    before = {name: value for name, value in before.items() if "pooler" not in name}  # BERT's, which no retriever reads
    assert set(after) == set(before)  # no trace of adapters
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(before[name].ndim == 2 and "embed" not in name and "norm" not in name.lower() for name in moved)
    for name in moved:
        values = torch.linalg.svdvals((after[name] - before[name]).double())
        assert values[0] > 1e-6 and (values[4:] < 1e-5 * values[0] + 1e-7).all()  # of rank 4
    linear = sum(value.ndim == 2 and "embed" not in name for name, value in before.items())
    assert len(moved) == linear


@needs_peft
def test_named_layers_alone(tmp_path: Path) -> None:
    found = job(tmp_path, lora=Lora(r=2, target_modules=("q_proj", "v_proj")))
    train_loop(found, Alone(), CPU)
    before, after = start(found), weights(found)
    moved = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"q_proj", "v_proj"}
    with pytest.raises(InputError, match=r"target_modules: \['query'\] fit no linear layer of the student; write .* q_proj"):
        train_loop(job(tmp_path / "wrong", lora=Lora(target_modules=("query",))), Alone(), CPU)


@needs_peft
def test_a_run_that_dies_goes_on_to_the_very_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = job(tmp_path / "calm", lora=Lora(r=4, dropout=0.2), config={"gradient_checkpointing": True})
    train_loop(calm, Alone(), CPU)
    hit = replace(job(tmp_path / "hit", lora=Lora(r=4, dropout=0.2), config={"gradient_checkpointing": True}), save_seconds=0.0)
    backward, left = Step.backward, [3]

    def dies(self: Step, source: Any, mine: Any, **more: Any) -> dict[str, float]:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("killed")
        return backward(self, source, mine, **more)

    monkeypatch.setattr(Step, "backward", dies)
    with pytest.raises(MemoryError):
        train_loop(hit, Alone(), CPU)
    assert checkpoint.latest(hit.scratch) == 3
    kept = load_file(Path(hit.scratch.uri) / "checkpoint-000000003.safetensors")
    assert kept and all("lora_" in name for name in kept)  # the large matrices are not written again and again
    left[0] = 99
    torch.manual_seed(7)
    train_loop(hit, Alone(), CPU)
    assert all(torch.equal(weights(calm)[name], weights(hit)[name]) for name in weights(calm))
    assert calm.out.read_json("curve.json") == hit.out.read_json("curve.json")


@needs_peft
def test_a_run_with_adapters(toy: Path, tmp_path: Path) -> None:
    folder = family_model("qwen3", tmp_path / "qwen3")
    student = {"model": str(folder), "normalize": True, "lora": {"r": 8}}
    curriculum = [
        {"lists": {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10}, "train": steps(150, 5.0e-3)},
        {"lists": {"graded": 10, "hard": 5, "hard_until": 20, "rest": 5}, "train": steps(10, 3.0e-3)},
    ]
    report = run_toy(tmp_path, settings(toy, "cldrd", student=student, curriculum=curriculum, loss=SCALE))
    systems = {name: one["nDCG@10"] for name, one in report["systems"].items()}
    assert systems["student"] > systems["student_before"] + 0.1
    assert report["provenance"]["export_difference"] < 1e-3
    # Each training begins from a plain model and ends with one; the config is part of what it is.
    store = open_store(report["store"])
    trained = [store.find(one["name"], one["id"]) for one in report["stages"] if one["name"] == "train"]
    assert [one.manifest["inputs"]["lora"]["fields"]["r"] for one in trained] == [8, 8]
    assert inputs(store, trained[1], "start").id == trained[0].id
    assert set(load_file(report["folder"] / "model" / "model.safetensors")) == set(
        load_file(Path(inputs(store, trained[0], "start").folder.uri) / "model" / "model.safetensors")
    )
    plain = {**student, "lora": None}
    again = run_toy(
        tmp_path / "plain", settings(toy, "cldrd", student=plain, curriculum=curriculum, loss=SCALE), store=report["store"]
    )
    assert "train step 1: 5/5/10" in made(again)  # another student
    assert "lora" not in store.find("train", next(s["id"] for s in again["stages"] if s["name"] == "train")).manifest["inputs"]


def test_without_peft_a_run_is_refused_in_one_line(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    student = {"model": str(toy / "student"), "lora": {}}
    line = refusal(
        capsys,
        tmp_path,
        settings(toy, "cldrd", student=student, curriculum=[{"lists": {"graded": 5, "hard": 0, "rest": 0}, "train": steps(1)}]),
    )
    assert line == "student.lora: peft is not installed; pip install 'raydrd[lora]', or remove student.lora"


def test_adapters_that_cannot_be() -> None:
    for fields, message in (({"r": 0}, "lora.r: "), ({"alpha": 0}, "lora.alpha: "), ({"dropout": 1}, "lora.dropout: ")):
        with pytest.raises(InputError, match=message):
            validate(Student, {"model": "m", "lora": fields}, "toy")
    with pytest.raises(InputError, match="lora.rank: unknown field"):
        validate(Student, {"model": "m", "lora": {"rank": 4}}, "toy")
