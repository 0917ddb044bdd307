"""The training loop: any examples, any objective, one worker or many.

A step is defined over the global batch. How it is cut into workers and micro-batches changes nothing but rounding:
losses are sums divided by counts of the whole step, and in-batch objectives see the vectors of the whole step.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydrd.methods.objectives import Objective, Vectors
from raydrd.models.batching import Encoded, SpecialTokens, token_batches
from raydrd.models.encoders import BiEncoder, load_biencoder, save_biencoder
from raydrd.models.layout import Layout, describe, describe_reranker, read_layout
from raydrd.models.rerankers import CrossEncoder, load_reranker, save_reranker
from raydrd.spine.parts import TokenReader
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.training import checkpoint
from raydrd.training.comm import Alone, Ranks
from raydrd.training.plan import TrainConfig, batch_of, epochs_of, step_seed
from raydrd.training.sources import ListExamples, TextExamples
from raydrd.training.words import Words, WordTeacher, chosen

WORD_QUERIES = 8  # queries whose token states are held at once
Chunk = tuple[str, NDArray[np.int64]]  # role, places among the batch's distinct texts of that role


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; a value, so that it travels."""

    start: Folder
    examples: ListExamples | TextExamples
    objective: Objective
    config: TrainConfig
    precision: Precision
    scratch: Folder
    out: Folder
    per_device: int | None
    tokens_per_batch: int | None
    save_seconds: float
    max_length: int | None = None  # of a cross-encoder's input; None: a bi-encoder is trained, its layout says
    words: WordTeacher | None = None


class Texts:
    """Token batches of a batch's distinct texts (query, passage), pairs or duels."""

    def __init__(
        self, path: Path, layout: Layout | None, tokens: dict[str, TokenReader], budget: int, max_length: int = 0
    ) -> None:
        from transformers import AutoTokenizer

        home = path / layout.passage_folder if layout else path
        self.special = SpecialTokens.of(AutoTokenizer.from_pretrained(home, local_files_only=True, trust_remote_code=False))
        self.layout, self.max_length, self.tokens, self.budget = layout, max_length, tokens, budget

    def _encoded(self, role: str, rows: NDArray[np.int64]) -> list[Encoded]:
        if role in ("query", "passage"):
            assert self.layout is not None
            limit = self.layout.max_len(role)
            return [self.special.single(ids, limit) for ids in self.tokens[role].take(rows)]
        queries = self.tokens["query"].take(rows[:, 0])
        texts = [self.tokens["passage"].take(column) for column in rows[:, 1:].T]
        join: Any = self.special.pair if role == "pair" else self.special.duel
        return [join(*one, self.max_length) for one in zip(queries, *texts, strict=True)]

    def _lengths(self, role: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if role in ("query", "passage"):
            assert self.layout is not None
            return self.special.single_lengths(self.tokens[role].lengths(rows), self.layout.max_len(role))
        lengths = sum(self.tokens["passage"].lengths(column) for column in rows[:, 1:].T)
        return self.special.pair_lengths(self.tokens["query"].lengths(rows[:, 0]), np.asarray(lengths), self.max_length)

    def chunks(self, rows: dict[str, Tensor]) -> list[Chunk]:
        """Texts of similar length together, by token budget."""
        return [
            (role, places)
            for role, these in rows.items()
            for places in token_batches(self._lengths(role, these.cpu().numpy()), tokens_per_batch=self.budget)
        ]

    def inputs(self, rows: dict[str, Tensor], chunk: Chunk, device: torch.device) -> tuple[str, dict[str, Tensor]]:
        role, places = chunk
        made = self.special.model_inputs(self._encoded(role, rows[role].cpu().numpy()[places]))
        return role, {name: tensor.to(device) for name, tensor in made.items()}


def train_loop(job: Job, comm: Alone | Ranks, device: torch.device) -> None:
    """Train to the end, from the last checkpoint if there is one; rank 0 writes `model/` and `curve.json`.

    Raises:
        ValueError: the global batch cannot be shared evenly, or the loss is not finite.
    """
    config = job.config
    if config.train_batch_size % comm.world:
        raise ValueError(f"train_batch_size {config.train_batch_size} cannot be shared by {comm.world} workers evenly")
    path = job.start.local_folder()
    layout = read_layout(path) if job.max_length is None else None
    model: BiEncoder | CrossEncoder = (load_biencoder(path) if layout else load_reranker(path)).to(device)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
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
    texts = Texts(path, layout, readers, budget, job.max_length or 0)
    words = None
    trained: nn.Module = model
    if job.words is not None:
        assert isinstance(model, BiEncoder) and layout is not None
        words = Words(
            job.words, model=model, special=texts.special, layout=layout, tokens=readers, precision=job.precision, device=device
        )
        trained = nn.ModuleDict({"model": model} | ({"projection": words.projection} if words.projection else {}))
    optimizer = adamw(trained, config)
    steps = config.steps(len(source))
    begin = comm.agreed(checkpoint.latest(job.scratch))
    curve = checkpoint.restore(job.scratch, step=begin, model=trained, optimizer=optimizer) if begin else []
    step = Step(job, comm, device, model, texts, words)
    saved = shown = time.monotonic()
    for number in range(begin, steps):
        torch.manual_seed(step_seed(config.seed, number, comm.rank))
        for group in optimizer.param_groups:
            group["lr"] = config.rate(number, steps)
        size = config.train_batch_size
        numbers = batch_of(number, seed=config.seed, examples=len(source), size=size)
        epochs = epochs_of(number, examples=len(source), size=size)
        mine = np.array_split(np.stack([numbers, epochs]), comm.world, axis=1)[comm.rank]
        losses = step.backward(source, mine, progress=number / steps)
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


def finish(model: BiEncoder | CrossEncoder, layout: Layout | None, path: Path, job: Job, curve: checkpoint.Curve) -> None:
    """The trained model as a folder, then the curve: its presence says that training ended."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        if isinstance(model, BiEncoder):
            assert layout is not None
            save_biencoder(model.cpu(), layout, folder, tokenizer_from=path / layout.passage_folder)
            about = describe(folder)
        else:
            save_reranker(model.cpu(), folder, tokenizer_from=path)
            about = describe_reranker(folder)
        (Path(scratch) / "about.json").write_text(json.dumps(about))
        job.out.upload(Path(scratch))
    job.out.write_json("curve.json", curve)


class Step:
    """One optimizer step's gradients: whole, in accumulated micro-batches, or with cached vectors."""

    def __init__(
        self,
        job: Job,
        comm: Alone | Ranks,
        device: torch.device,
        model: BiEncoder | CrossEncoder,
        texts: Texts,
        words: Words | None = None,
    ) -> None:
        self.job, self.comm, self.device, self.model, self.texts, self.words = job, comm, device, model, texts, words
        self.objective: Any = job.objective

    def backward(self, source: Any, mine: NDArray[np.int64], *, progress: float = 0.0) -> dict[str, float]:
        """Add the gradients of this rank's examples (their numbers, and epochs below); the mean losses of the whole step."""
        mine = np.stack([mine, np.zeros_like(mine)]) if mine.ndim == 1 else mine
        examples = mine.shape[1]
        size = self.job.per_device or examples
        width = source.width()
        if size >= examples:
            pieces, cached = [mine], False
        elif self.objective.needs_pool:
            pieces, cached = [mine], True  # the pool is the whole step: vectors are cached, not lists cut
        else:
            pieces, cached = self._pieces(mine, size), False
        batches = [self._to_device(source.batch(piece[0], width, piece[1]), progress) for piece in pieces]
        counts = self.comm.sums(self._counts(batches))
        totals = dict.fromkeys(counts, 0.0)
        for batch in batches:
            if cached:
                losses = self._cached(batch, counts, -(-examples // size))
            else:
                vectors = self._encode(batch.rows, self.texts.chunks(batch.rows))
                losses = self.objective(vectors, batch, self.comm)
                self._total(losses, counts).backward()
            for name, (total, _) in losses.items():
                totals[name] += float(total.detach())
        if self.words is not None:
            counts["words"], totals["words"] = self._words(source, mine, min(size, WORD_QUERIES), width, progress)
        totals = self.comm.sums(totals)
        return {name: totals[name] / max(counts[name], 1.0) for name in totals}

    @staticmethod
    def _pieces(mine: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
        return [mine[:, lo : lo + size] for lo in range(0, mine.shape[1], size)]

    def _words(
        self, source: Any, mine: NDArray[np.int64], size: int, width: int | None, progress: float
    ) -> tuple[float, float]:
        """Add the word level's gradients, a few queries at a time: token states take far more room than vectors."""
        assert self.words is not None
        batches = [self._to_device(source.batch(p[0], width, p[1]), progress) for p in self._pieces(mine, size)]
        pairs = sum(len(chosen(batch, self.words.rule.negatives)) for batch in batches)
        count = self.comm.sums({"words": float(pairs)})["words"]
        weight, summed = self.words.rule.weight_at(progress), 0.0
        for batch in batches:
            total, _ = self.words.loss(batch)
            (total * weight / max(count, 1.0)).backward()
            summed += float(total.detach()) * weight
        return count, summed

    def _total(self, losses: dict[str, Any], counts: dict[str, float]) -> Tensor:
        return torch.stack([total / max(counts[name], 1.0) for name, (total, _) in losses.items()]).sum()

    def _counts(self, batches: list[Any]) -> dict[str, float]:
        """What each loss is divided by: a property of labels and masks, so vectors of zeros will do."""
        counts: dict[str, float] = {}
        with torch.no_grad():
            for batch in batches:
                zeros = {
                    role: torch.zeros(len(rows), self.model.width, device=self.device) for role, rows in batch.rows.items()
                }
                for name, (_, count) in self.objective(zeros, batch, self.comm).items():
                    counts[name] = counts.get(name, 0.0) + count
        return counts

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16")

    def _encode(self, rows: dict[str, Tensor], chunks: list[Chunk]) -> Vectors:
        """Vectors of the distinct texts of a batch, in their order."""
        return self._ordered(rows, chunks, self._forward(rows, chunks))

    def _ordered(self, rows: dict[str, Tensor], chunks: list[Chunk], made: list[Tensor]) -> Vectors:
        """Vectors of chunks put back into the order of the batch's texts."""
        vectors: Vectors = {}
        for role in rows:
            parts = [(places, v) for (r, places), v in zip(chunks, made, strict=True) if r == role]
            order = np.argsort(np.concatenate([places for places, _ in parts]), kind="stable")
            vectors[role] = torch.cat([v for _, v in parts])[torch.from_numpy(order).to(self.device)]
        return vectors

    def _cached(self, batch: Any, counts: dict[str, float], groups: int) -> Any:
        """Vectors without a graph, the loss on them, then one forward and backward a group of texts.

        Gao et al., arXiv 2101.06983 (gradient cache): the memory of a step of any size is that of one group. Each
        group's dropout is drawn again from the same seed.
        """
        chunks = self.texts.chunks(batch.rows)
        size = -(-len(chunks) // groups)
        cut = [chunks[lo : lo + size] for lo in range(0, len(chunks), size)]
        seeds = [int(torch.randint(2**62, (1,)).item()) for _ in cut]
        made: list[Tensor] = []
        with torch.no_grad():
            for group, seed in zip(cut, seeds, strict=True):
                torch.manual_seed(seed)
                made += self._forward(batch.rows, group)
            vectors = self._ordered(batch.rows, chunks, made)
        vectors = {role: found.requires_grad_() for role, found in vectors.items()}
        losses = self.objective(vectors, batch, self.comm)
        self._total(losses, counts).backward()
        gradients: dict[str, Any] = {role: found.grad for role, found in vectors.items()}
        for group, seed in zip(cut, seeds, strict=True):
            torch.manual_seed(seed)
            surrogate = [
                (v * gradients[role][torch.from_numpy(places).to(self.device)]).sum()
                for (role, places), v in zip(group, self._forward(batch.rows, group), strict=True)
            ]
            torch.stack(surrogate).sum().backward()
        return losses

    def _forward(self, rows: dict[str, Tensor], group: list[Chunk]) -> list[Tensor]:
        with self._autocast():
            made: list[Tensor] = self.model([self.texts.inputs(rows, chunk, self.device) for chunk in group])
        return made

    def _to_device(self, batch: Any, progress: float) -> Any:
        batch.progress = progress
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                setattr(batch, name, value.to(self.device))
            elif name in ("targets", "teacher_vectors"):
                setattr(batch, name, {role: v.to(self.device) for role, v in value.items()})
        return batch
