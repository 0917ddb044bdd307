"""The store: a stage is a plain function, the store gives it memory.

Identity = stage name, stage version, inputs (plain values, `Frozen` components, artifacts by id). How a stage ran
never enters. Each artifact has a home `ROOT/STAGE/ID/`:

    manifest.json    written last; no manifest, not finished. Names the files it vouches for.
    shards/          finished shards under stable names: what a killed attempt made is kept
    out-XXXXXXXX/    one attempt's other files; the manifest names the attempt that counts
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from raydrd.config import Frozen
from raydrd.errors import StageError
from raydrd.spine.cluster import Cluster
from raydrd.spine.progress import per_second, say
from raydrd.spine.provenance import provenance
from raydrd.spine.storage import Folder

MANIFEST = "manifest.json"
WAIT_SECONDS = 0.2  # between two looks at a claim that another run holds


@dataclass(frozen=True)
class Artifact:
    """A finished result: its id, where it lives and what its manifest says."""

    id: str
    stage: str
    home: Folder
    manifest: dict[str, Any] = field(compare=False, hash=False)

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])

    @property
    def folder(self) -> Folder:
        """The files that the finishing attempt wrote."""
        return self.home / str(self.manifest["attempt"])

    @property
    def shards(self) -> Folder:
        return self.home / "shards"


@dataclass(frozen=True)
class Located:
    """Something known by its content (`identity`), found at `where`: only the former enters an identity.

    digest: of the files, where `identity` says how they were made.
    """

    identity: Any
    where: Any
    digest: str = ""


@dataclass(frozen=True)
class Work:
    """What a stage is given: where to write, and how to run."""

    folder: Folder
    shards: Folder
    cluster: Cluster
    label: str
    id: str
    root: Folder  # of the whole store: what its runs share lies there


@dataclass
class Record:
    """One line of a run's journal."""

    name: str
    label: str
    id: str
    seconds: float
    rows: int
    unit: str
    reused: bool
    because: list[str]


class Stage(Protocol):
    """A function that writes under `work` and returns its metrics; `rows` and `unit` among them."""

    __name__: str
    version: int

    def __call__(self, work: Work, **inputs: Any) -> dict[str, Any]: ...


def stage(version: int) -> Callable[[Any], Any]:
    """Mark a function as a stage. Raise `version` when the meaning of its output changes: older results are not reused."""

    def mark(function: Any) -> Any:
        function.version = version
        return function

    return mark


def canonical(value: Any) -> Any:
    """The stable form of an input, for its identity.

    Raises:
        TypeError: the value has no stable form (a lambda, an open file, a tensor, a set, a path, NaN); with advice.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case Located():
            return canonical(value.identity)
        case Artifact():
            return {"artifact": f"{value.stage}/{value.id}"}
        case Frozen():
            fields = {name: canonical(one) for name, one in value.identity().items()}
            return {"component": type(value).__name__, "version": type(value).version, "fields": fields}
        case list() | tuple():
            return [canonical(item) for item in value]
        case dict():
            return {str(key): canonical(item) for key, item in value.items()}
    raise TypeError(
        f"{type(value).__qualname__} has no stable identity; pass a plain value, a Frozen component or an Artifact "
        "(a file enters by the digest of its content)"
    )


def identify(function: Stage, inputs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(id, readable identity) of a stage with these inputs."""
    identity = {"stage": function.__name__, "version": function.version, "inputs": canonical(inputs)}
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16], identity


class Claims(Protocol):
    """Who makes what, among several runs in one store at the same time. A key is an artifact's home."""

    def take(self, key: str) -> bool:
        """Whether it is this run's to make now."""
        ...

    def release(self, key: str) -> None:
        """It is made, or given up."""
        ...


@dataclass
class Store:
    """Memory for stages, under one root.

    With `claims` no stage is made by two runs at once: the others wait, and find it. A stage never asks for another one,
    so nobody waits while holding something that is waited for.
    """

    root: Folder
    cluster: Cluster
    claims: Claims | None = None
    waited: float = 0.0  # seconds, for what other runs were making
    journal: list[Record] = field(default_factory=list)
    _seen: dict[str, Artifact] = field(default_factory=dict)

    def run(self, function: Stage, /, label: str = "", **inputs: Any) -> Artifact:
        """The artifact of a stage with these inputs: found if it was finished before, made otherwise.

        Raises:
            TypeError: an input has no stable identity.
            StageError: the stage finished without what it promised, or gave up.
        """
        began = time.monotonic()
        name = function.__name__
        label = label or name
        id_, identity = identify(function, inputs)
        if id_ in self._seen:  # asked for again within this run: one line in the journal is enough
            return self._seen[id_]
        home = self.root / name / id_
        reused = home.exists(MANIFEST)
        because: list[str] = []
        if not reused:
            with self._claimed(home):
                reused = self.claims is not None and home.exists(MANIFEST)  # another run made it meanwhile
                if not reused:
                    began = time.monotonic()
                    because = self._differences(name, identity)
                    self._make(function, home, id_, identity, label, inputs, because)
        artifact = self.open(home)
        metrics = artifact.metrics
        record = Record(
            name=name,
            label=label,
            id=id_,
            seconds=time.monotonic() - began if not reused else 0.0,
            rows=int(metrics.get("rows", 0)),
            unit=str(metrics.get("unit", "rows")),
            reused=reused,
            because=because,
        )
        self.journal.append(record)
        self._seen[id_] = artifact
        say(stage_line(record))
        return artifact

    def branch(self) -> Store:
        """A store that knows what this one was asked for, with an empty journal: what is asked beyond that is its own."""
        return Store(self.root, self.cluster, self.claims, _seen=dict(self._seen))

    @contextmanager
    def _claimed(self, home: Folder) -> Iterator[None]:
        """This run alone makes what lies there, as soon as no other one does."""
        if self.claims is None:
            yield
            return
        began = time.monotonic()
        while not self.claims.take(home.uri):
            time.sleep(WAIT_SECONDS)
        self.waited += time.monotonic() - began
        try:
            yield
        finally:
            self.claims.release(home.uri)

    def _make(
        self,
        function: Stage,
        home: Folder,
        id_: str,
        identity: dict[str, Any],
        label: str,
        inputs: dict[str, Any],
        because: list[str],
    ) -> None:
        attempt = f"out-{uuid4().hex[:8]}"
        began = time.time()
        work = Work(folder=home / attempt, shards=home / "shards", cluster=self.cluster, label=label, id=id_, root=self.root)
        try:
            metrics = function(work, **inputs) or {}
        except Exception:
            if not home.exists(MANIFEST):
                raise
            # Another run finished the same stage and tidied up under this one's feet: its result counts.
            (home / attempt).delete()
            return
        files = {n: size for n, size in home.files().items() if n.startswith(("shards/", f"{attempt}/"))}
        kept = {n: size for n, size in files.items() if not n.startswith(("shards/attempts/", "shards/scratch/"))}
        if not kept:
            raise StageError(f"{function.__name__}: ended without writing anything")
        manifest = {
            **identity,
            "id": id_,
            "attempt": attempt,
            "files": kept,
            "metrics": metrics,
            "seconds": round(time.time() - began, 3),
            "because": because,
            "provenance": provenance(),
        }
        if not home.create(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode()):
            (home / attempt).delete()  # another writer finished first: its result counts
        (home / "shards" / "attempts").delete()
        (home / "shards" / "scratch").delete()

    def open(self, home: Folder) -> Artifact:
        manifest = home.read_json(MANIFEST)
        return Artifact(id=manifest["id"], stage=manifest["stage"], home=home, manifest=manifest)

    def find(self, stage_name: str, id_: str) -> Artifact:
        """A finished artifact by name.

        Raises:
            FileNotFoundError: it was never finished here.
        """
        return self.open(self.root / stage_name / id_)

    def _differences(self, name: str, identity: dict[str, Any]) -> list[str]:
        """What differs from the nearest finished result of the same stage: why something is made anew."""
        kept = self.root / name
        here = _flat(identity)
        nearest: list[str] | None = None
        for folder in kept.folders()[:50]:
            try:
                other = _flat((kept / folder).read_json(MANIFEST), only=("stage", "version", "inputs"))
            except FileNotFoundError:
                continue  # never finished
            lines = [
                f"{key}: {other.get(key, 'absent')} -> {here.get(key, 'absent')}"
                for key in sorted({*here, *other})
                if here.get(key) != other.get(key)
            ]
            if nearest is None or len(lines) < len(nearest):
                nearest = lines
        return nearest if nearest is not None else ["nothing of this stage was made before"]


def _flat(value: Any, prefix: str = "", only: tuple[str, ...] = ()) -> dict[str, Any]:
    if isinstance(value, dict):
        pairs = [(key, item) for key, item in value.items() if not only or key in only]
    elif isinstance(value, list):
        pairs = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, item in pairs:
        if key in ("fields", "inputs") and isinstance(item, dict):
            result.update(_flat(item, prefix))
        else:
            result.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return result


def stage_line(record: Record) -> str:
    """`embed passages (teacher)    made     5,183 passages   41.2 s   126/s`."""
    what = f"{record.rows:,} {record.unit}" if record.rows else ""
    if record.reused:
        return f"{record.label:<34} reused {what:>22}"
    rate = per_second(record.rows / record.seconds) if record.rows and record.seconds > 0.05 else ""
    return f"{record.label:<34} made   {what:>22} {record.seconds:8.1f} s {rate:>10}"
