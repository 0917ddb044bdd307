"""One optimizer step's gradients, whatever fits the device at once.

A step is defined over the global batch. How it is cut into workers and micro-batches changes nothing but rounding:
losses are sums divided by counts of the whole step, and in-batch objectives see the vectors of the whole step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydrd.errors import StageError
from raydrd.methods.maxsim import widened
from raydrd.methods.objectives import Vectors
from raydrd.models.devices import fitting
from raydrd.models.encoders import BiEncoder
from raydrd.models.late import LateEncoder
from raydrd.models.rerankers import CrossEncoder
from raydrd.training.comm import Alone, Ranks
from raydrd.training.job import Job
from raydrd.training.texts import Chunk, Texts
from raydrd.training.words import Words, chosen

WORD_QUERIES = 8  # queries whose token states are held at once
MISFIT = "ranks whose memory was too small"
Made = dict[str, Tensor]  # what a model gives of a chunk of texts; its names stand behind the role's in the whole batch


class Step:
    """One optimizer step's gradients: whole, in accumulated micro-batches, or with cached vectors.

    What does not fit the device's memory is tried again in smaller pieces, by all ranks together; the smaller size is
    remembered for the worker's life. First fewer queries at once, then one batch of texts at a time with cached vectors,
    then smaller batches of texts, down to one text.
    """

    def __init__(
        self,
        job: Job,
        comm: Alone | Ranks,
        device: torch.device,
        model: BiEncoder | LateEncoder | CrossEncoder,
        texts: Texts,
        words: Words | None = None,
    ) -> None:
        self.job, self.comm, self.device, self.model, self.texts, self.words = job, comm, device, model, texts, words
        self.shapes = model.shapes if isinstance(model, LateEncoder) else {"": (model.width,)}
        self.objective: Any = job.objective
        # The loss must see all lists of the step: vectors are cached, not lists cut.
        pacing = getattr(job.objective, "pacing", None)
        self.together = job.objective.needs_pool or (pacing is not None and pacing.mode == "batch_topk")
        self.size = job.per_device  # queries at once; None: all
        self.apart = False  # one batch of texts at a time, whatever `size` says
        self.tried: tuple[dict[str, Tensor], list[Chunk]] = {}, []  # the texts that were last encoded
        self.smaller = ""  # what did not fit, for a person

    def backward(self, source: Any, mine: NDArray[np.int64], *, progress: float = 0.0) -> dict[str, float]:
        """Add the gradients of this rank's examples (their numbers, and epochs below); the mean losses of the whole step.

        Raises:
            StageError: not even one text fits the device's memory.
        """
        mine = np.stack([mine, np.zeros_like(mine)]) if mine.ndim == 1 else mine
        seed = torch.initial_seed()  # what the loop has just set
        while True:
            size = min(self.size or mine.shape[1], mine.shape[1])
            losses, fits = self._try(source, mine, size, progress)
            if losses is not None:
                return losses
            self.model.zero_grad(set_to_none=True)
            if self.words is not None and self.words.projection is not None:
                self.words.projection.zero_grad(set_to_none=True)
            if not fits:
                self._halve(size)
            torch.manual_seed(seed)

    def _try(self, source: Any, mine: NDArray[np.int64], size: int, progress: float) -> tuple[dict[str, float] | None, bool]:
        """The step's losses, or None if some rank's memory was too small; and whether this rank's was enough.

        All ranks go through the same collective operations whatever happens to one of them.
        """
        width = source.width()
        pieces = [mine] if self.together else self._pieces(mine, size)
        batches = [self._to_device(source.batch(piece[0], width, piece[1]), progress) for piece in pieces]
        counts = self.comm.sums(self._whole(lambda: self._counts(batches)))
        totals = dict.fromkeys(counts, 0.0)
        fits = True
        for batch in batches:
            if not fits:
                break
            losses, fits = self._learn(batch, counts, -(-mine.shape[1] // size) if self.together else 1)
            for name, total in losses.items():
                totals[name] += total
        if self.words is not None:
            counts["words"], totals["words"], enough = self._words(source, mine, min(size, WORD_QUERIES), width, progress, fits)
            fits = fits and enough
        totals = self.comm.sums({**totals, MISFIT: float(not fits)})
        if totals.pop(MISFIT):
            return None, fits
        return {name: totals[name] / max(counts[name], 1.0) for name in totals}, True

    def _halve(self, size: int) -> None:
        """Smaller pieces for the next try.

        Raises:
            StageError: there is nothing smaller than one text.
        """
        if size > 1:
            self.size = size // 2
        elif not self.apart:
            self.size, self.apart = 1, True
        elif any(len(places) > 1 for _, places in self.tried[1]):
            rows, chunks = self.tried
            self.texts.budget = max(self.texts.padded(rows, chunk) for chunk in chunks if len(chunk[1]) > 1) // 2
        else:
            raise StageError(
                f"training on one text at a time does not fit the memory of {self.device}; set "
                "train.gradient_checkpointing=true or precision=bf16, cut texts shorter (max_length), or take a smaller model"
            )
        at_once = "one batch of texts" if self.apart else f"{self.size} queries"
        self.smaller = (
            f"rank {self.comm.rank}: a step did not fit the memory of {self.device}; it goes on with {at_once} at once, the "
            f"same but for rounding and dropout's draws; resources.per_device_train_batch_size={self.size} spares the tries"
        )

    @staticmethod
    def _pieces(mine: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
        return [mine[:, lo : lo + size] for lo in range(0, mine.shape[1], size)]

    def _whole(self, work: Any) -> Any:
        """What `work` gives, which cannot be cut."""
        found = fitting(work)
        if found is None:
            raise StageError(
                f"the scores of a whole batch do not fit the memory of {self.device}; lower train.train_batch_size, or give "
                "more of resources.train_workers"
            )
        return found

    def _learn(self, batch: Any, counts: dict[str, float], groups: int) -> tuple[dict[str, float], bool]:
        """Add a batch's gradients, its texts in so many groups; the summed losses, and whether it fitted.

        Several groups: vectors without a graph, the loss on them, then one forward and backward a group (Gao et al.,
        arXiv 2101.06983, gradient cache): the memory of a step of any size is that of one group. Each group's dropout
        is drawn again from the same seed.
        """
        chunks = self.texts.chunks(batch.rows)
        self.tried = batch.rows, chunks
        size = 1 if self.apart else -(-len(chunks) // groups)
        cut = [chunks[lo : lo + size] for lo in range(0, len(chunks), size)]
        seeds = [int(torch.randint(2**62, (1,)).item()) for _ in cut] if len(cut) > 1 else []
        encoded = fitting(lambda: self._encode(batch.rows, chunks, cut, seeds))
        if encoded is None and not self.together:
            return {}, False
        # A rank without vectors stands in with zeros: the others wait for its part, and all try again afterwards.
        vectors = {r: v.detach() for r, v in encoded.items()} if encoded is not None else self._zeros(batch)
        vectors = {role: found.requires_grad_() for role, found in vectors.items()}

        def loss() -> dict[str, float]:
            losses = self.objective(vectors, batch, self.comm)
            torch.stack([total / max(counts[name], 1.0) for name, (total, _) in losses.items()]).sum().backward()
            return {name: float(total.detach()) for name, (total, _) in losses.items()}

        losses = self._whole(loss) if self.together else fitting(loss)
        if encoded is None or losses is None:
            return losses or {}, False
        graph = encoded
        slopes: Vectors = {role: found.grad for role, found in vectors.items() if found.grad is not None}
        return losses, fitting(lambda: self._spread(batch.rows, cut, seeds, graph, slopes)) is not None

    def _encode(self, rows: dict[str, Tensor], chunks: list[Chunk], cut: list[list[Chunk]], seeds: list[int]) -> Vectors:
        """Vectors of the distinct texts of a batch, in their order; with a graph if they are one group."""
        if len(cut) == 1:
            return self._ordered(rows, chunks, self._forward(rows, chunks))
        made: list[Made] = []
        with torch.no_grad():
            for group, seed in zip(cut, seeds, strict=True):
                torch.manual_seed(seed)
                made += self._forward(rows, group)
            return self._ordered(rows, chunks, made)

    def _spread(
        self, rows: dict[str, Tensor], cut: list[list[Chunk]], seeds: list[int], encoded: Vectors, slopes: Vectors
    ) -> bool:
        """Take the gradients of vectors on to the weights."""
        if len(cut) == 1:
            torch.autograd.backward([encoded[role] for role in slopes], list(slopes.values()))
            return True
        for group, seed in zip(cut, seeds, strict=True):
            torch.manual_seed(seed)
            made = zip(group, self._forward(rows, group), strict=True)
            found = [
                (v, slopes[r + name][torch.from_numpy(places).to(self.device)])
                for (r, places), named in made
                for name, v in named.items()
                if r + name in slopes
            ]
            if found:
                torch.stack([(v * slope[:, : v.shape[1]]).sum() for v, slope in found]).sum().backward()
        return True

    def _words(
        self, source: Any, mine: NDArray[np.int64], size: int, width: int | None, progress: float, fits: bool
    ) -> tuple[float, float, bool]:
        """Add the word level's gradients, a few queries at a time: token states take far more room than vectors."""
        words = self.words
        assert words is not None
        batches = [self._to_device(source.batch(p[0], width, p[1]), progress) for p in self._pieces(mine, size)]
        pairs = sum(len(chosen(batch, words.rule.negatives)) for batch in batches)
        count = self.comm.sums({"words": float(pairs)})["words"]
        weight = words.rule.weight_at(progress)

        def learn() -> float:
            summed = 0.0
            for batch in batches:
                total, _ = words.loss(batch)
                (total * weight / max(count, 1.0)).backward()
                summed += float(total.detach()) * weight
            return summed

        summed = fitting(learn) if fits else None
        return count, summed or 0.0, summed is not None

    def _counts(self, batches: list[Any]) -> dict[str, float]:
        """What each loss is divided by: a property of labels and masks, so vectors of zeros will do."""
        counts: dict[str, float] = {}
        with torch.no_grad():
            for batch in batches:
                for name, (_, count) in self.objective(self._zeros(batch), batch, self.comm).items():
                    counts[name] = counts.get(name, 0.0) + count
        return counts

    def _zeros(self, batch: Any) -> Vectors:
        return {
            role + name: torch.zeros(len(rows), *shape, device=self.device)
            for role, rows in batch.rows.items()
            for name, shape in self.shapes.items()
        }

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16")

    def _ordered(self, rows: dict[str, Tensor], chunks: list[Chunk], made: list[Made]) -> Vectors:
        """Vectors of chunks put back into the order of the batch's texts; token vectors up to the longest text's."""
        vectors: Vectors = {}
        for role in rows:
            parts = [(places, named) for (r, places), named in zip(chunks, made, strict=True) if r == role]
            order = np.argsort(np.concatenate([places for places, _ in parts]), kind="stable")
            for name, shape in self.shapes.items():
                found = [named[name] for _, named in parts]
                if len(shape) == 2:
                    found = [widened(one, max(each.shape[1] for each in found)) for one in found]
                vectors[role + name] = torch.cat(found)[torch.from_numpy(order).to(self.device)]
        return vectors

    def _forward(self, rows: dict[str, Tensor], group: list[Chunk]) -> list[Made]:
        with self._autocast():
            made = self.model([self.texts.inputs(rows, chunk, self.device) for chunk in group])
        return [one if isinstance(one, dict) else {"": one} for one in made]

    def _to_device(self, batch: Any, progress: float) -> Any:
        batch.progress = progress
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                setattr(batch, name, value.to(self.device))
            elif name in ("targets", "teacher_vectors"):
                setattr(batch, name, {role: v.to(self.device) for role, v in value.items()})
        return batch
