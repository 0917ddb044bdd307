"""Ray behind one small interface: run shards on a pool of actors, or in this process with the same code.

A shard is a small dict that says what to read and where to write; its worker writes a file and returns a few bytes.
Nothing that grows with the data passes through the driver or the object store.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from raydrd.config import Resources
from raydrd.errors import InputError, StageError
from raydrd.spine.precision import local_gpu
from raydrd.spine.progress import bar, noted, remark
from raydrd.spine.quiet import DivertedStderr, keep_logs, quiet_ray
from raydrd.spine.storage import Folder
from raydrd.spine.trouble import explained
from raydrd.spine.waiting import SEATS, Waiting, pool_line

Shard = dict[str, Any]
Worker = Callable[[Shard], dict[str, Any]]

# Actors with more threads than this gain little on encoders of this size (measured: docs of Resources).
MOST_THREADS = 8
REQUESTS = 256  # that an engine is handed at once; it takes them apart itself


@dataclass(frozen=True)
class Pool:
    """Actors of one kind: how many, and what each may use."""

    size: int
    cpus: int
    gpus: float


def plan_pool(resources: Resources, *, cpus: list[int], gpus: list[int], shards: int) -> Pool:
    """The pool that fits nodes with these `cpus` and `gpus`, an actor on one node, and leaves one core of all free.

    A pool that takes every core can wait for ever for the tasks that would feed it, so it is shrunk: fewer actors
    first, then fewer cores an actor.

    Raises:
        InputError: GPUs were asked for that no node has.
    """
    most = max(gpus)
    per_gpu = resources.gpus_per_worker if resources.gpus_per_worker is not None else (1.0 if most else 0.0)
    if per_gpu > most:
        raise InputError(f"resources.gpus_per_worker: {per_gpu:g} asked for, a node has {most}; write {most} or less")
    free = max(1, sum(cpus) - 1)
    largest = max(1, min(max(cpus), free))
    per_cpu = min(resources.cpus_per_worker or min(MOST_THREADS, largest if not per_gpu else 2), largest)
    fitting = sum(min(cores // per_cpu, on_gpus(per_gpu, count)) for cores, count in zip(cpus, gpus, strict=True))
    fitting = min(fitting, free // per_cpu)
    size = max(1, min(resources.num_workers or fitting, fitting, shards))
    return Pool(size=size, cpus=per_cpu, gpus=per_gpu)


def on_gpus(per_worker: float, gpus: int) -> int:
    """Workers that fit a node's GPUs: a fraction lies on one GPU, it cannot be put together from two."""
    if not per_worker:
        return 10**9
    return gpus * int(1 / per_worker + 1e-9) if per_worker <= 1 else int(gpus / per_worker)


@dataclass
class Cluster:
    """Where shards run. Ray starts only when the first shard needs it."""

    resources: Resources
    logs: Path | None = None
    _started: bool = field(default=False, init=False)
    _mine: bool = field(default=False, init=False)
    _session: str = field(default="", init=False)
    _stderr: DivertedStderr | None = field(default=None, init=False)

    @property
    def uses_ray(self) -> bool:
        return self.resources.ray != "off"

    @property
    def is_local(self) -> bool:
        """No other machine takes part."""
        return not self.uses_ray or _address(self.resources.ray) == "local"

    @property
    def has_gpu(self) -> bool:
        """Workers may get a GPU: found without starting a local Ray."""
        if self.is_local:
            return local_gpu()
        self.start()
        import ray

        return bool(ray.cluster_resources().get("GPU", 0) > 0)

    def start(self) -> None:
        """Connect to the given address, else start a quiet local Ray; never attach to one found by chance.

        Raises:
            InputError: the address does not answer.
        """
        if self._started:
            return
        quiet_ray()
        import ray

        address = _address(self.resources.ray)
        if ray.is_initialized():  # a test's or a job's own Ray
            self._started = True
            return
        if self.logs is not None and self._stderr is None:
            self._stderr = DivertedStderr(self.logs)
        common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if address == "local":
                # One logical core more than there are: a pool of all cores still leaves room for Ray's own tasks.
                cores = available_cores() + 1
                context: Any = ray.init(
                    address="local", num_cpus=cores, include_dashboard=False, object_store_memory=256 << 20, **common
                )
                self._mine = True
            else:
                context = ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"ray: {address!r} does not answer ({error}); start Ray there, or set resources.ray=auto"
            ) from error
        self._session = str(context.address_info.get("session_dir", ""))
        self._started = True

    def stop(self) -> None:
        """Keep the logs of our own Ray and end it; somebody else's Ray is left alone."""
        if self._mine:
            import ray

            ray.shutdown()
            if self.logs is not None:
                keep_logs(Path(self._session), self.logs / "ray")
            self._started = self._mine = False
        if self._stderr is not None:
            self._stderr.restore()
            self._stderr = None

    def map(
        self,
        worker: type,
        arguments: dict[str, Any],
        shards: list[Shard],
        *,
        label: str,
        unit: str,
        marks: Folder,
        inline: bool = False,
        models: bool = True,
    ) -> list[dict[str, Any]]:
        """Run `worker(**arguments)(shard)` for every shard; the results, in order of completion.

        Each shard has `name`, and `rows` for the progress bar. `inline` (tiny inputs, done before an actor has started) runs
        in this process, unless a model would miss the GPUs of a cluster. `models=False` asks for no GPU.

        Raises:
            StageError: shards failed; names the first and its error. The others were finished before it is raised.
        """
        if not shards:
            return []
        total = sum(int(shard.get("rows", 1)) for shard in shards)
        here = not self.uses_ray or (inline and (self.is_local or not models or not self.has_gpu))
        run = self._inline if here else self._on_ray
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        said: set[str] = set()
        with bar(label, total, unit) as shown:
            for result in run(worker, arguments, shards, marks, models, label):
                shown.update(int(result.get("rows", 1)))
                for line in set(result.pop("notes", [])) - said:
                    said.add(line)
                    remark(f"  {label}: {line}")
                (errors if result.get("error") else results).append(result)
        for error in errors:
            if error.get("input"):
                raise InputError(error["error"])
        if errors:
            first = errors[0]
            raise StageError(
                f"{label}: {len(errors)} of {len(shards)} shards failed; {first['shard']}: {first['error']}"
                + (f"\n{first['trace']}" if first.get("trace") else "")
            )
        return results

    def _inline(
        self, worker: type, arguments: dict[str, Any], shards: list[Shard], marks: Folder, models: bool, label: str
    ) -> Iterator[dict[str, Any]]:
        try:
            run = worker(**arguments)
            set_threads(own_threads())
        except Exception as error:
            yield {"shard": shards[0]["name"], **failure(error)}
            return
        for shard in shards:
            yield attempt(run, shard)

    def _on_ray(
        self, worker: type, arguments: dict[str, Any], shards: list[Shard], marks: Folder, models: bool, label: str
    ) -> Iterator[dict[str, Any]]:
        self.start()
        import ray
        from ray.data import ActorPoolStrategy

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        pool = plan_pool(
            self.resources if models else self.resources.model_copy(update={"gpus_per_worker": 0.0}),
            cpus=[int(node.get("CPU", 0)) for node in nodes],
            gpus=[int(node.get("GPU", 0)) if models else 0 for node in nodes],
            shards=len(shards),
        )
        shared_or_refuse(marks)
        rows = [{"item": {**shard, "mark": shard["name"]}} for shard in shards]
        token = uuid4().hex[:8]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Seat,
            batch_size=1,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            compute=ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs={
                "worker": worker,
                "arguments": arguments,
                "threads": pool.cpus,
                "gpus": pool.gpus,
                "marks": marks,
                "token": token,
                "attempts": self.resources.shard_attempts,
            },
        )
        done: set[str] = set()
        each = f"{pool.cpus} CPU{'s' if pool.cpus > 1 else ''}" + (f" and {pool.gpus:g} GPU" if pool.gpus else "")
        with Waiting(
            label, self.resources.stall_seconds, lambda: pool_line(marks / token, done, pool.size, each, room())
        ) as waiting:
            for row in dataset.iter_rows():
                waiting.moved()
                done.add(row["result"]["shard"])
                yield row["result"]

    def ask(
        self,
        worker: type,
        arguments: dict[str, Any],
        shards: list[Shard],
        *,
        model: Folder,
        options: Callable[[int], dict[str, Any]],
        read: Callable[[dict[str, Any]], dict[str, Any]],
        keeper: type,
        kept: dict[str, Any],
        rows: int,
        label: str,
        total: int,
    ) -> list[dict[str, Any]]:
        """Have vLLM answer the requests that `worker(**arguments)(shard)` makes, by `ray.data.llm`; what its keepers tell.

        options: vLLM's own settings for so many GPUs an engine. read: of an answered request, what a keeper is given;
        `keeper(**kept)(up to so many rows)` puts it away. A request that fails is a row with `__inference_error__`.

        Raises:
            InputError: vLLM is not installed, or no node has the GPUs.
            StageError: the engine, a worker or a keeper gave up.
        """
        self.start()
        import ray

        if find_spec("vllm") is None:
            raise InputError("teacher.engine: vllm is not installed; pip install 'raydrd[llm]', or write engine: transformers")
        each = max(1, int(self.resources.gpus_per_worker or 1))
        engines = sum(int(node["Resources"].get("GPU", 0)) // each for node in ray.nodes() if node["Alive"])
        if not engines:
            raise InputError(f"teacher.engine: vllm needs {each} GPUs of one node; none has them; write engine: transformers")
        from ray.data import ActorPoolStrategy
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config = vLLMEngineProcessorConfig(
            model_source=str(model.local_folder()) if model.is_local else model.uri,
            engine_kwargs=options(each),
            concurrency=min(self.resources.num_workers or engines, engines),
            batch_size=REQUESTS,
            should_continue_on_error=True,
            log_engine_metrics=False,
            # The requests hold token ids, and of the answer only log probabilities are read.
            **dict.fromkeys(("chat_template_stage", "tokenize_stage", "detokenize_stage"), False),
        )
        one = ActorPoolStrategy(size=1)
        items = [{"item": shard} for shard in shards]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
            Feeder, fn_constructor_kwargs={"worker": worker, "arguments": arguments}, compute=one, num_cpus=1
        )
        answered = build_processor(config, postprocess=read)(dataset).map_batches(
            Keeping, batch_size=rows, batch_format="pyarrow", fn_constructor_kwargs={"keeper": keeper, "kept": kept},
            compute=one, num_cpus=1,
        )  # fmt: skip
        results = []
        with bar(label, total, "prompts") as shown:
            try:
                for row in answered.iter_rows():
                    results.append(row["result"])
                    shown.update(int(row["result"].get("kept", 0)))
            except Exception as error:  # Ray wraps a worker's error in its own classes, which change between versions
                known = explained(error) or StageError(f"{label}: {str(error).strip().splitlines()[-1]}")
                raise known from error
        return results


class Feeder:
    """An actor that makes requests."""

    def __init__(self, *, worker: type, arguments: dict[str, Any]) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self.run: Any = worker(**arguments)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        return list(self.run(dict(row["item"])))


class Keeping:
    """An actor that puts answers away."""

    def __init__(self, *, keeper: type, kept: dict[str, Any]) -> None:
        self.run: Any = keeper(**kept)

    def __call__(self, batch: Any) -> dict[str, Any]:
        return {"result": [self.run(batch.to_pylist())]}


def room() -> str:
    """What Ray has and what of it is free: `cluster has 8 CPUs, 1 free; 2 GPUs, 0 free`."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    kinds = [k for k in ("CPU", "GPU") if k == "CPU" or has.get(k)]
    return "cluster has " + "; ".join(f"{has.get(k, 0):g} {k}s, {free.get(k, 0):g} free" for k in kinds)


def attempt(run: Worker, shard: Shard) -> dict[str, Any]:
    """The worker's result, or its error as a value: one bad shard does not cancel the others."""
    began = time.monotonic()
    noted()  # what is left of something else in this process
    try:
        result = dict(run(shard))
    except Exception as error:
        return {"shard": shard["name"], "rows": int(shard.get("rows", 1)), **failure(error)}
    result.setdefault("shard", shard["name"])
    result.setdefault("rows", int(shard.get("rows", 1)))
    result["busy_seconds"] = time.monotonic() - began
    if lines := noted():
        result["notes"] = lines
    return result


def failure(error: Exception) -> dict[str, Any]:
    """An error that is being handled, as a value that travels; the user's mistake stays one. One line where one explains it."""
    known = explained(error)
    if isinstance(known, InputError):
        return {"error": str(known), "input": True}
    if known is not None:
        return {"error": str(known)}
    return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


class Seat:
    """An actor's place: builds the worker once, counts attempts, so that a shard that kills its actor is given up.

    Ray Data restarts a dying actor and retries its task for ever; the marks outlive the actor and end that.
    """

    def __init__(
        self, *, worker: type, arguments: dict[str, Any], threads: int, gpus: float, marks: Folder, token: str, attempts: int
    ) -> None:
        # Ray sets OMP_NUM_THREADS once a process; a reused process would keep the number of its first task.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # an actor that was given no GPU takes none
        self.marks, self.token, self.attempts = marks, token, attempts
        self.error: dict[str, Any] | None = None
        place = f"{token}/{SEATS}/{uuid4().hex[:8]}"
        try:
            self.marks.write_bytes(f"{place}.begun", b"")
            set_threads(threads)
            self.run: Worker = worker(**arguments)
            self.marks.write_bytes(f"{place}.ready", b"")
        except Exception as error:
            # Raised here it would be retried for ever; kept, every shard reports it and the stage ends.
            self.error = failure(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shard = dict(batch["item"][0])
        mark = shard.pop("mark")
        if self.error is not None:
            return {"result": [{"shard": mark, "rows": int(shard.get("rows", 1)), **self.error}]}
        try:
            number = 1
            while self.marks.exists(f"{self.token}/{mark}.{number}"):
                number += 1
            if number > 1 and self.marks.exists(f"{self.token}/{mark}.done"):
                # Its result was lost with the node that held it, and Ray asks again: what is finished is not made twice.
                return {"result": [self.marks.read_json(f"{self.token}/{mark}.done")]}
            if number > self.attempts:
                raise StageError(f"killed its worker {self.attempts} times (out of memory, or a crash below Python)")
            self.marks.write_bytes(f"{self.token}/{mark}.{number}", b"")
        except Exception as error:  # a store that is out of reach or full; raised here it would end as Ray's traceback
            return {"result": [{"shard": mark, "rows": int(shard.get("rows", 1)), **failure(error)}]}
        result = attempt(self.run, shard)
        if not result.get("error"):
            with suppress(Exception):  # a store in trouble fails the shard where it writes its rows, not here
                self.marks.write_json(f"{self.token}/{mark}.done", result)
        return {"result": [result]}


def set_threads(threads: int) -> None:
    """Use this many cores for torch, if torch is what the worker runs."""
    import pyarrow

    pyarrow.set_cpu_count(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def own_threads() -> int:
    """Threads of work in this process: what OMP_NUM_THREADS says, else one a core.

    Set before every piece of work: another number gives other last bits, and a run that goes on must not know how far the
    killed one had come.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdigit() else available_cores()


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _address(setting: str) -> str:
    """`auto` means RAY_ADDRESS (set inside `ray job submit`) and else a Ray of our own: never one found by chance."""
    if setting == "auto":
        return os.environ.get("RAY_ADDRESS") or "local"
    return setting


def shared_or_refuse(folder: Folder) -> None:
    """On several machines a local folder must be one that all of them see.

    Raises:
        InputError: another node does not see what this one wrote.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len({node["NodeManagerHostname"] for node in nodes}) < 2 or not folder.is_local:
        return
    folder.write_bytes("shared", b"")

    @ray.remote(num_cpus=0)
    def sees(where: Folder) -> bool:
        return where.exists("shared")

    for node in nodes:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        if not ray.get(sees.options(scheduling_strategy=strategy).remote(folder)):
            raise InputError(
                f"store {folder}: node {node['NodeManagerHostname']} does not see this folder; "
                "give a shared file system or an object store: --store s3://bucket/prefix"
            )
