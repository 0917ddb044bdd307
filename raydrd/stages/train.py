"""train: lists or target vectors -> a model folder, on Ray Train workers (or in this process)."""

from __future__ import annotations

import os
import threading
from typing import Any
from uuid import uuid4

from raydrd.errors import InputError, StageError
from raydrd.methods.objectives import Objective
from raydrd.methods.wordmaps import WordMaps
from raydrd.spine.cluster import Cluster, available_cores, shared_or_refuse
from raydrd.spine.parts import Chain, Parts
from raydrd.spine.precision import Precision
from raydrd.spine.progress import bar
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import model_folder
from raydrd.stages.shards import chain_of, parts_of
from raydrd.training.plan import TrainConfig
from raydrd.training.sources import ListExamples, TextExamples
from raydrd.training.words import WordTeacher

ERROR = "error.json"  # what a worker could not do, in words; kept where the driver finds it


@stage(version=2)
def train(
    work: Work,
    *,
    start: Artifact,
    lists: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact | list[Artifact],
    objective: Objective,
    config: TrainConfig,
    precision: Precision,
    teacher_vectors: dict[str, Artifact] | None = None,
    words: WordMaps | None = None,
    word_teacher: Artifact | None = None,
) -> dict[str, Any]:
    """A student that has learnt `objective` on training lists, from the weights of `start` with a new optimizer.

    Several `passage_tokens` follow one another: the corpus, then passages written for queries. `teacher_vectors` (query,
    passage) are read by terms over the whole batch; `words` with its cross-encoder adds MD2PR's word level.
    """
    examples = ListExamples(
        lists=parts_of(lists),
        tokens=_tokens(query_tokens, passage_tokens),
        group=config.train_group_size,
        seed=config.seed,
        teacher_vectors={role: parts_of(made) for role, made in (teacher_vectors or {}).items()},
    )
    count = int(lists.metrics["rows"])
    more: dict[str, Any] = {}
    if words is not None:
        assert word_teacher is not None
        more["words"] = WordTeacher(rule=words, model=model_folder(word_teacher), seed=config.seed)
    return _run(work, start, examples, objective, config, precision, examples_count=count, **more)


@stage(version=1)
def train_reranker(
    work: Work,
    *,
    start: Artifact,
    lists: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact,
    objective: Objective,
    config: TrainConfig,
    precision: Precision,
    max_length: int,
    duels: bool = False,
) -> dict[str, Any]:
    """A cross-encoder that has learnt `objective` on lists of query-passage pairs, or on `duels` of two passages."""
    examples = ListExamples(
        lists=parts_of(lists),
        tokens=_tokens(query_tokens, passage_tokens),
        form="duels" if duels else "pairs",
        group=config.train_group_size,
        seed=config.seed,
    )
    count = int(lists.metrics["rows"])
    return _run(work, start, examples, objective, config, precision, examples_count=count, max_length=max_length)


def _tokens(query: Artifact, passage: Artifact | list[Artifact]) -> dict[str, Parts | Chain]:
    return {"query": parts_of(query), "passage": chain_of(passage)}


@stage(version=1)
def imitate(
    work: Work,
    *,
    start: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact,
    query_vectors: Artifact,
    passage_vectors: Artifact,
    objective: Objective,
    config: TrainConfig,
    precision: Precision,
) -> dict[str, Any]:
    """A cut student that has learnt to give the vectors of its uncut original."""
    stores = (
        ("query", parts_of(query_tokens), parts_of(query_vectors)),
        ("passage", parts_of(passage_tokens), parts_of(passage_vectors)),
    )
    count = stores[0][1].rows + stores[1][1].rows
    return _run(work, start, TextExamples(stores), objective, config, precision, examples_count=count)


def _run(
    work: Work,
    start: Artifact,
    examples: ListExamples | TextExamples,
    objective: Objective,
    config: TrainConfig,
    precision: Precision,
    *,
    examples_count: int,
    max_length: int | None = None,
    words: WordTeacher | None = None,
) -> dict[str, Any]:
    from raydrd.training.loop import Job

    resources = work.cluster.resources
    job = Job(
        start=model_folder(start),
        examples=examples,
        objective=objective,
        config=config,
        precision=precision,
        scratch=work.shards / "scratch",
        out=work.folder,
        per_device=resources.per_device_train_batch_size,
        tokens_per_batch=resources.tokens_per_batch,
        save_seconds=resources.save_seconds,
        max_length=max_length,
        words=words,
    )
    job.scratch.delete_file(ERROR)
    steps = config.steps(examples_count)
    with bar(work.label, steps, "steps") as shown, Watch(job, shown):
        if not work.cluster.uses_ray or resources.train_workers == 0:
            worker({"job": job, "threads": available_cores(), "alone": True})
        else:
            on_ray(work.cluster, job)
    if job.scratch.exists(ERROR):
        raise StageError(f"{work.label}: {job.scratch.read_json(ERROR)['error']}")
    if not work.folder.exists("curve.json"):
        raise StageError(f"{work.label}: training ended without a model")
    curve = work.folder.read_json("curve.json")
    return {
        **start.metrics,
        **work.folder.read_json("about.json"),
        "rows": len(curve),
        "unit": "steps",
        "examples": examples_count,
        "last_loss": curve[-1][1],
    }


class Watch:
    """Moves the progress bar by what rank 0 writes, while `fit` blocks."""

    def __init__(self, job: Any, shown: Any) -> None:
        self.job, self.shown, self.done = job, shown, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.done.wait(1.0 if self.job.scratch.is_local else 5.0):
            if not self.job.scratch.exists("progress.json"):
                continue
            found = self.job.scratch.read_json("progress.json")
            self.shown.set_postfix(loss=f"{found['loss']:.4f}")
            self.shown.update(found["step"] - self.shown.n)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(timeout=10)


def worker(setup: dict[str, Any]) -> None:
    """What one worker runs: its device, its place among the ranks, the loop."""
    import torch

    from raydrd.models.devices import keep_freed_memory, this_device
    from raydrd.training.comm import Alone, Ranks
    from raydrd.training.loop import train_loop

    torch.set_num_threads(setup["threads"])
    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    job = setup["job"]
    comm: Alone | Ranks
    if setup.get("alone"):
        device, comm = this_device(), Alone()
    else:
        from ray.train import get_context
        from ray.train.torch import get_device

        device = get_device()
        comm = Ranks(device) if get_context().get_world_size() > 1 else Alone()
    try:
        train_loop(job, comm, device)
    except ValueError as error:
        # Trying again would end the same way; a crash below Python, or a lost process, is what restarts are for.
        job.scratch.write_json(ERROR, {"error": str(error)})
        if comm.world > 1:
            raise  # the other ranks wait for this one


def on_ray(cluster: Cluster, job: Any) -> None:
    """The loop on Ray Train workers; a killed worker restarts all of them from the last checkpoint.

    Raises:
        StageError: they failed again and again.
    """
    cluster.start()
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    resources = cluster.resources
    shared_or_refuse(job.scratch)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    gpu = gpus > 0 and resources.gpus_per_worker != 0
    free = max(1, int(sum(node.get("CPU", 0) for node in nodes)) - 1)
    if resources.train_workers > (gpus if gpu else free):
        raise InputError(
            f"resources.train_workers: {resources.train_workers} workers need as many {'GPUs' if gpu else 'cores'}, "
            f"{gpus if gpu else free} are free"
        )
    largest = max(1, min(free, int(max(node.get("CPU", 1) for node in nodes))))
    cpus = 1 if gpu else min(resources.cpus_per_worker or largest, largest, max(1, free // resources.train_workers))
    # A name of its own for each attempt: the loop's checkpoints are ours, Ray's own state would only go stale.
    storage = (job.scratch / "ray").uri if job.scratch.is_local else None
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job, "threads": cpus},
        scaling_config=ScalingConfig(
            num_workers=resources.train_workers, use_gpu=gpu, resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # its annotation is Train v1's, at run time it is v2's
            name=f"attempt-{uuid4().hex[:8]}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=3),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps the worker's error in its own classes, which change between versions
        if not job.scratch.exists(ERROR):
            raise StageError(f"training failed: {error}") from error
