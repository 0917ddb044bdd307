"""train: lists or target vectors -> a model folder, on Ray Train workers (or in this process)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from raydrd.errors import InputError, StageError
from raydrd.methods.nested import Nested
from raydrd.methods.objectives import Objective
from raydrd.methods.tokenwise import TokenObjective
from raydrd.methods.wordmaps import WordMaps
from raydrd.models.adapters import Lora
from raydrd.models.latelayout import TOKENS
from raydrd.spine.cluster import Cluster, own_threads, room, shared_or_refuse
from raydrd.spine.parts import Chain, Parts
from raydrd.spine.precision import Precision
from raydrd.spine.progress import bar
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import model_folder
from raydrd.stages.shards import chain_of, parts_of
from raydrd.training.plan import TrainConfig
from raydrd.training.sources import ListExamples, TextExamples
from raydrd.training.words import WordTeacher

ERROR = "error.json"  # what a worker could not do, in words; kept where the driver finds it
RESTARTS = 3  # of all workers, between two checkpoints


@stage(version=2)
def train(
    work: Work,
    *,
    start: Artifact,
    lists: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact | list[Artifact],
    objective: Objective | Nested | TokenObjective,
    config: TrainConfig,
    precision: Precision,
    teacher_vectors: dict[str, Artifact] | None = None,
    words: WordMaps | None = None,
    word_teacher: Artifact | None = None,
    lora: Lora | None = None,
) -> dict[str, Any]:
    """A student that has learnt `objective` on training lists, from the weights of `start` with a new optimizer.

    Several `passage_tokens` follow one another: the corpus, then passages written for queries. `teacher_vectors` (query,
    passage) are read by terms over the whole batch; `words` with its cross-encoder adds MD2PR's word level. `lora`: only
    adapters learn, which are merged into the weights in the end.
    """
    examples = ListExamples(
        lists=parts_of(lists),
        tokens=_tokens(query_tokens, passage_tokens),
        group=config.train_group_size,
        seed=config.seed,
        teacher_vectors={role: parts_of(made) for role, made in (teacher_vectors or {}).items()},
    )
    count = int(lists.metrics["rows"])
    more: dict[str, Any] = {"lora": lora}
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
    objective: Objective | TokenObjective,
    config: TrainConfig,
    precision: Precision,
    also: dict[str, Artifact] | None = None,
    lora: Lora | None = None,
) -> dict[str, Any]:
    """A cut student that has learnt to give the vectors of its uncut original, one a text or one a token.

    also: a hybrid's token vectors by role (query, passage), where the others are its pooled ones.
    """
    stores = (
        ("query", parts_of(query_tokens), parts_of(query_vectors)),
        ("passage", parts_of(passage_tokens), parts_of(passage_vectors)),
    )
    named = tuple((role + TOKENS, role, parts_of(made)) for role, made in (also or {}).items())
    count = stores[0][1].rows + stores[1][1].rows
    return _run(work, start, TextExamples(stores, named), objective, config, precision, examples_count=count, lora=lora)


def _run(
    work: Work,
    start: Artifact,
    examples: ListExamples | TextExamples,
    objective: Objective | Nested | TokenObjective,
    config: TrainConfig,
    precision: Precision,
    *,
    examples_count: int,
    max_length: int | None = None,
    words: WordTeacher | None = None,
    lora: Lora | None = None,
) -> dict[str, Any]:
    from raydrd.training import notes
    from raydrd.training.job import Job
    from raydrd.training.watch import Watch

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
        lora=lora,
    )
    for name in (ERROR, notes.FAULT):
        job.scratch.delete_file(name)
    notes.clear(job.scratch)
    group = None
    if work.cluster.uses_ray and resources.train_workers != 0:
        group = plan_group(work.cluster, config.train_batch_size)
    where, space = (group.in_words(), room) if group else ("this process", lambda: "without Ray")
    with (
        bar(work.label, config.steps(examples_count), "steps") as shown,
        Watch(work.label, job.scratch, shown, seconds=resources.stall_seconds, workers=where, room=space),
    ):
        if group is None:
            worker({"job": job, "threads": own_threads(), "alone": True})
        else:
            on_ray(work.cluster, job, group)
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


def worker(setup: dict[str, Any]) -> None:
    """What one worker runs: its device, its place among the ranks, the loop."""
    import torch

    from raydrd.models.devices import give_memory_back, keep_freed_memory, this_device
    from raydrd.training.comm import Alone, Ranks
    from raydrd.training.loop import train_loop

    before = torch.get_num_threads()
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
    except (ValueError, StageError) as error:
        # Trying again would end the same way; a crash below Python, or a lost process, is what restarts are for.
        job.scratch.write_json(ERROR, {"error": str(error)})
        if comm.world > 1:
            raise  # the other ranks wait for this one
    finally:
        # What this process embeds next has the threads that it has in a run that found this training finished.
        torch.set_num_threads(before)
        give_memory_back()


@dataclass(frozen=True)
class Group:
    """Training workers: the fewest and the most of them, and what each may use."""

    fewest: int
    most: int
    cpus: int
    gpu: bool

    def in_words(self) -> str:
        number = f"{self.most}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        each = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}" + (" and 1 GPU" if self.gpu else "")
        return f"{number} worker{'s' if self.most > 1 else ''} of {each} each"


def plan_group(cluster: Cluster, batch: int) -> Group:
    """The training workers that `resources` ask for, at most one an example of a batch.

    A range may ask for more than there is now: nodes may come back. On one machine none will.

    Raises:
        InputError: not even the fewest fit.
    """
    cluster.start()
    import ray

    resources = cluster.resources
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    gpu = gpus > 0 and resources.gpus_per_worker != 0
    free = max(1, int(sum(node.get("CPU", 0) for node in nodes)) - 1)
    fewest, most = (min(n, batch) for n in resources.train_range())
    there = gpus if gpu else free
    if fewest > there:
        raise InputError(
            f"resources.train_workers: {fewest} workers need as many {'GPUs' if gpu else 'cores'}, {there} are free"
        )
    if cluster.is_local:
        most = min(most, there)
    largest = max(1, min(free, int(max(node.get("CPU", 1) for node in nodes))))
    cpus = 1 if gpu else min(resources.cpus_per_worker or largest, largest, max(1, free // most))
    return Group(fewest=fewest, most=most, cpus=cpus, gpu=gpu)


def on_ray(cluster: Cluster, job: Any, group: Group | None = None) -> None:
    """The loop on Ray Train workers; a killed or stuck worker restarts all of them from the last checkpoint.

    Where `group` is a range they go on with as many as the cluster still has room for. Workers that fail four times
    between two checkpoints are given up.

    Raises:
        StageError: they were given up; says which rank it was, and at which step.
    """
    from ray.train import ControllerError

    from raydrd.training import checkpoint, notes

    group = group or plan_group(cluster, job.config.train_batch_size)
    shared_or_refuse(job.scratch)
    early = 0
    while not job.scratch.exists(ERROR):
        begun = checkpoint.latest(job.scratch)
        try:
            _fit(cluster, job, group)
            return
        except Exception as error:  # Ray wraps the worker's error in its own classes, which change between versions
            if job.scratch.exists(ERROR) or checkpoint.latest(job.scratch) > begun:
                early = 0
                continue
            if isinstance(error, ControllerError) and early < RESTARTS:
                early += 1  # a worker died while its group started: Ray takes that for its own error and gives up at once
                continue
            told = job.scratch.read_json(notes.FAULT)["text"] if job.scratch.exists(notes.FAULT) else str(error)
            raise StageError(f"training failed {RESTARTS + 1} times from step {begun} on: {told}") from error


def _fit(cluster: Cluster, job: Any, group: Group) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    limit = cluster.resources.collective_timeout_s
    if group.fewest < group.most:
        # What Ray holds for free lags by up to 20 s behind a node's loss: a group that does not fit is soon tried smaller.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")

    class Faults(UserCallback):
        """In Ray's controller: what ended an attempt, before the next one begins."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            note_fault(job.scratch, worker_exceptions, limit)

    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job, "threads": group.cpus},
        torch_config=TorchConfig(timeout_s=limit),
        scaling_config=ScalingConfig(
            num_workers=group.most if group.fewest == group.most else (group.fewest, group.most),  # type: ignore[arg-type]
            use_gpu=group.gpu,
            resources_per_worker={"CPU": group.cpus, **({"GPU": 1} if group.gpu else {})},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # its annotation is Train v1's, at run time it is v2's
            # A name of its own for each attempt: the loop's checkpoints are ours, Ray's own state would only go stale.
            name=f"attempt-{uuid4().hex[:8]}",
            storage_path=(job.scratch / "ray").uri if job.scratch.is_local else None,
            failure_config=FailureConfig(max_failures=RESTARTS),
            callbacks=[Faults()],  # type: ignore[list-item]
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()


def note_fault(scratch: Folder, errors: dict[int, Exception], limit: float) -> None:
    """Write down which rank ended an attempt and where, and forget the notes of the attempt."""
    from ray.exceptions import RayActorError

    from raydrd.training import notes

    dead = sorted(rank for rank, error in errors.items() if isinstance(error, RayActorError))
    own = {rank: (str(error).strip() or type(error).__name__).splitlines()[-1] for rank, error in errors.items()}
    own = {rank: text for rank, text in own.items() if rank not in dead and not notes.lost_peer(text)}
    now, found = time.time(), notes.read(scratch)
    if not dead and not own:
        # Ranks that lost one of them are heard of first. Which one it was, the notes say once all have written theirs.
        time.sleep(2.0 if scratch.is_local else 10.0)
        found = notes.read(scratch)
        dead = notes.missing({rank: note for rank, note in found.items() if rank not in errors} or found)
    text = notes.fault(found, dead, own, limit=limit, now=now)
    scratch.write_json(notes.FAULT, {"text": text, "at": now})
    notes.clear(scratch)
