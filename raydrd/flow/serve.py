"""The student in the form that ships: its vectors cut and kept as `vectors` says, asked as an index of them is asked."""

from __future__ import annotations

from typing import Any

from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import retrieve, tokens, vectors
from raydrd.flow.servelate import bytes_shipped, late_run
from raydrd.setting import Served
from raydrd.spine.store import Artifact
from raydrd.stages.adopt import layout_of
from raydrd.stages.cutting import cut_vectors
from raydrd.stages.index import build_index
from raydrd.stages.indexfile import bytes_each, fewest, made
from raydrd.stages.load import table
from raydrd.stages.lookup import search_index
from raydrd.stages.race import race
from raydrd.stages.search import search


def served_vectors(lab: Lab, student: Artifact, data: Artifact, name: str, label: str) -> Artifact:
    """Vectors of table `name`, cut where `vectors.dim` says so."""
    whole, dim = vectors(lab.store, student, data, name, lab.precision, label), lab.cfg.vectors.dim
    if dim is None or dim == student.metrics.get("width"):
        return whole
    what = "passages" if name == "corpus" else f"{name.removeprefix('queries/')} queries"
    normalize = layout_of(student).normalize
    return lab.store.run(cut_vectors, f"cut {what} ({label})", vectors=whole, dim=dim, normalize=normalize)


def served_index(lab: Lab, student: Artifact, data: Artifact, label: str, stage_label: str = "") -> Artifact:
    """The FAISS index of a collection's passages that ships, or that would."""
    passages = served_vectors(lab, student, data, "corpus", label)
    return lab.store.run(build_index, stage_label or f"index ({label})", vectors=passages, data=data, factory=lab.cfg.factory)


def as_shipped(lab: Lab, student: Artifact, data: Artifact, name: str, *, k: int, label: str) -> Artifact:
    """The k best passages a query of table `name`, by the vectors that ship, in the index that ships: dev as test.

    Flat is exact search, so no index of it is built. A sample of passages that is too small for the index to learn from is
    searched exactly too, and the lab notes it.
    """
    if lab.cfg.student.tokens:
        return late_run(lab, student, data, name, k=k, label=label)
    if lab.cfg.factory == "Flat" or _too_few(lab, student, data):
        return searched_exactly(lab, student, data, name, k=k, label=label)
    queries = served_vectors(lab, student, data, name, label)
    index = served_index(lab, student, data, label)
    return lab.store.run(search_index, f"search {name.removeprefix('queries/')} ({label})", index=index, queries=queries, k=k)


def searched_exactly(lab: Lab, student: Artifact, data: Artifact, name: str, *, k: int, label: str) -> Artifact:
    """As `as_shipped`, of float32 vectors as Flat gives them, whatever index ships: what it is measured against."""
    if lab.cfg.vectors == Served():
        return retrieve(lab, student, data, name, k=k, label=label)
    queries, passages = (served_vectors(lab, student, data, table_, label) for table_ in (name, "corpus"))
    return lab.store.run(search, f"search {name.removeprefix('queries/')} ({label})", queries=queries, passages=passages, k=k)


def learns_from(lab: Lab, student: Artifact) -> int:
    """Passages that the index which ships cannot be made with less than."""
    return fewest(made(lab.cfg.factory, lab.cfg.vectors.dim or int(student.metrics["width"])))[0]


def _too_few(lab: Lab, student: Artifact, data: Artifact) -> bool:
    if lab.dry:  # nobody knows the width yet
        return False
    there, needed = table(data, "corpus").rows, learns_from(lab, student)
    if there >= needed:
        return False
    told = f"index {lab.cfg.factory} learns from {needed:,} passages, the dev sample has {there:,}: dev is searched exactly"
    if told not in lab.notes:
        lab.notes.append(told)
    return True


def served_form(lab: Lab, student: Artifact) -> dict[str, Any] | None:
    """dim, of (the student's own), type and bytes a passage; None where vectors ship as the student gives them."""
    if lab.cfg.vectors == Served():
        return None
    found = size_of(lab, student)
    bytes_ = found["bytes_per_passage"]
    return {"dim": found["dim"], "of": int(student.metrics["width"]), "type": found["type"], "bytes": bytes_}


def served_words(lab: Lab, student: Artifact) -> str:
    """`, served as 96 dimensions, int8`; empty where vectors ship as the student gives them."""
    found = served_form(lab, student)
    return f", served as {found['dim']} dimensions, {found['type']}" if found else ""


def size_of(lab: Lab, student: Artifact) -> dict[str, Any]:
    """What a student takes where it is used: layers, dimensions and number type of its vectors, index, bytes a passage.

    bytes_per_passage: of the index, ids apart; None for a kind of index that does not tell before it is built.
    """
    if lab.cfg.student.tokens:
        about = {"type": lab.cfg.late.type, "index": f"MaxSim, {lab.cfg.late.candidates}"}
        return {
            "layers": int(student.metrics["layers"]),
            "dim": student.metrics["late"]["dim"],
            **about,
            "bytes_per_passage": bytes_shipped(lab, student),
        }
    dim = lab.cfg.vectors.dim or int(student.metrics["width"])
    return {
        "layers": int(student.metrics["layers"]),
        "dim": dim,
        "type": lab.cfg.vectors.type,
        "index": lab.cfg.index,
        "bytes_per_passage": bytes_each(made(lab.cfg.factory, dim)),
    }


def encoding_speed(lab: Lab, students: list[Artifact]) -> list[float]:
    """Passages a second of each student, in their order, on passages of the corpus; timed side by side, now or before."""
    own = [tokens(lab.store, one, lab.data, "corpus") for one in students]
    raced = lab.store.run(race, "encoding speeds", models=students, tokens=own, precision=lab.precision)
    return [float(speed) for speed in raced.metrics["per_second"]]
