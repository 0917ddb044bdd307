"""The training loop: any examples, any objective, one worker or many."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raydrd.models.adapters import add_adapters, merge_adapters
from raydrd.models.encoders import BiEncoder, save_biencoder
from raydrd.models.late import LateEncoder, load_student, save_late
from raydrd.models.latelayout import describe_late, read_student
from raydrd.models.layout import Layout, describe, describe_reranker, folder_digest
from raydrd.models.rerankers import CrossEncoder, load_reranker, save_reranker
from raydrd.spine.parts import TokenReader
from raydrd.training import checkpoint
from raydrd.training.comm import Alone, Ranks
from raydrd.training.job import Job
from raydrd.training.notes import Note
from raydrd.training.plan import TrainConfig, batch_of, epochs_of, step_seed
from raydrd.training.step import Step
from raydrd.training.texts import Texts
from raydrd.training.words import Words


def train_loop(job: Job, comm: Alone | Ranks, device: torch.device) -> None:
    """Train to the end, from the last checkpoint if there is one; rank 0 writes `model/` and `curve.json`.

    Raises:
        ValueError: there are more workers than examples a step, or the loss is not finite.
        StageError: not even one text fits the device's memory.
    """
    if job.config.train_batch_size < comm.world:
        raise ValueError(f"train_batch_size {job.config.train_batch_size} is too small for {comm.world} workers")
    with Note(job.scratch, comm) as note:
        _train(job, comm, device, note)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Every dropout of a model, in place: modules, and rates that layers hand to their attention (Llama, Qwen, ModernBERT)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, rate)


def _train(job: Job, comm: Alone | Ranks, device: torch.device, note: Note) -> None:
    config = job.config
    path = job.start.local_folder()
    layout, late = read_student(path) if job.max_length is None else (None, None)
    model: BiEncoder | LateEncoder | CrossEncoder = (load_student(path) if layout else load_reranker(path)).to(device)
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    if job.lora is not None:  # after the line above: adapters have a dropout of their own
        add_adapters(model.bodies(), job.lora, seed=config.seed)
    if config.gradient_checkpointing:
        for body in model.bodies():
            body.activation_checkpointing_enable({"use_reentrant": False})
    if device.type == "cpu":
        # Measured with 134 passages of 85 tokens: plain attention trains 1.4 times faster than torch's fused CPU kernel,
        # whose backward pass is slow. On GPUs the fused one stays.
        for body in model.bodies():
            body.set_attn_implementation("eager")
    model.train()
    source = job.examples.open()
    if not len(source):
        raise ValueError("there are no examples to train on: every query was dropped by the rule")
    budget = job.tokens_per_batch or (65_536 if device.type == "cuda" else 4096)
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}
    texts = Texts(path, layout, readers, budget, job.max_length or 0, late)
    words = None
    trained: nn.Module = model
    if job.words is not None:
        assert isinstance(model, BiEncoder | LateEncoder) and layout is not None
        words = Words(
            job.words, model=model, special=texts.special, layout=layout, tokens=readers, precision=job.precision,
            device=device, reading=texts.reading,
        )  # fmt: skip
        trained = nn.ModuleDict({"model": model} | ({"projection": words.projection} if words.projection else {}))
    optimizer = adamw(trained, config)
    steps = config.steps(len(source))
    begin = comm.agreed(checkpoint.latest(job.scratch))
    curve = checkpoint.restore(job.scratch, step=begin, model=trained, optimizer=optimizer) if begin else []
    step = Step(job, comm, device, model, texts, words)
    saved = shown = time.monotonic()
    for number in range(begin, steps):
        note.step = number
        torch.manual_seed(step_seed(config.seed, number, comm.rank))
        for group in optimizer.param_groups:
            group["lr"] = config.rate(number, steps)
        size = config.train_batch_size
        numbers = batch_of(number, seed=config.seed, examples=len(source), size=size)
        epochs = epochs_of(number, examples=len(source), size=size)
        losses = step.backward(source, comm.cut(np.stack([numbers, epochs])), progress=number / steps)
        note.say = step.smaller
        comm.sum_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained.parameters(), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise ValueError(f"step {number}: the gradient is not finite; lower learning_rate or set precision: fp32")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append([number + 1, sum(losses.values()), config.rate(number, steps)])
        now = time.monotonic()
        due = comm.agreed(int(now - saved >= job.save_seconds)) if comm.world > 1 else now - saved >= job.save_seconds
        if comm.rank == 0:
            if due and number + 1 < steps:
                checkpoint.save(job.scratch, step=number + 1, model=trained, optimizer=optimizer, curve=curve)
            if now - shown >= 1.0 or number + 1 == steps:
                job.scratch.write_json("progress.json", {"step": number + 1, "steps": steps, "loss": curve[-1][1]})
                shown = now
        if due:
            saved = now
    if comm.rank == 0:
        finish(model, layout, path, job, curve)


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; no weight decay on vectors (biases, layer norms)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, eps=config.adam_epsilon, fused=True)


def finish(
    model: BiEncoder | LateEncoder | CrossEncoder, layout: Layout | None, path: Path, job: Job, curve: checkpoint.Curve
) -> None:
    """The trained model as a folder, then the curve: its presence says that training ended."""
    if job.lora is not None:
        merge_adapters(model.bodies())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        if isinstance(model, BiEncoder):
            assert layout is not None
            save_biencoder(model.cpu(), layout, folder, tokenizer_from=path / layout.passage_folder)
            about = describe(folder)
        elif isinstance(model, LateEncoder):
            assert layout is not None
            save_late(model.cpu(), layout, folder, tokenizer_from=path / layout.passage_folder)
            about = describe_late(folder)
        else:
            save_reranker(model.cpu(), folder, tokenizer_from=path)
            about = {**describe_reranker(folder), "weights": folder_digest(folder)}
        (Path(scratch) / "about.json").write_text(json.dumps(about))
        job.out.upload(Path(scratch))
    job.out.write_json("curve.json", curve)
