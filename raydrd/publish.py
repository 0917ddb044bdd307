"""The end of a run: measure all systems, compare them, and lay out the run folder for people.

runs/NAME/  config.yaml report.json report.html run.trec per_query.parquet model/ index/ logs/
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from raydrd.card import model_card
from raydrd.errors import InputError
from raydrd.examples import examples
from raydrd.flow.judge import judge
from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import bm25, retrieve, token_vectors, tokens, vectors
from raydrd.flow.serve import as_shipped, searched_exactly, served_form, served_index, served_vectors, served_words
from raydrd.flow.servelate import about_late, about_model, late_recall, lay_out_tokens, pooled_run, served_tokens
from raydrd.flow.teach import teacher_run
from raydrd.flow.teachers import Teacher
from raydrd.models.layout import CARD, truncated
from raydrd.recipes import RECIPES
from raydrd.report import forecast
from raydrd.report.page import write_page
from raydrd.sizes import sizes_told
from raydrd.slices import traits
from raydrd.spine.provenance import provenance
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact
from raydrd.stages.adopt import late_of, layout_of, model_folder
from raydrd.stages.late.ship import verify_late_export
from raydrd.stages.load import table
from raydrd.stages.recall import about_index, measure_index
from raydrd.stages.shards import parts_of
from raydrd.stages.ship import verify_export
from raydrd.stages.sizes import measure_sizes
from raydrd.statistics import bootstrap_interval, compare

LABELS = {"bm25": "bm25", "student_before": "before", "teacher": "teacher", "student": "after"}


@dataclass(frozen=True)
class Measured:
    """The last stages' results: each system's run and metrics, what is shipped, and how the teacher was asked."""

    runs: dict[str, Artifact]
    tables: dict[str, Artifact]
    index: Artifact
    recall: Artifact | None  # of an index that is not exact
    sizes: Artifact | None  # what other forms of the same vectors would give
    verified: Artifact
    how: str


def measured(lab: Lab, student: Artifact) -> Measured:
    """All systems on the test queries, the student as it ships; the index to ship; the exported student checked."""
    depth = lab.cfg.evaluation.depth
    passages = vectors(lab.store, student, lab.data, "corpus", lab.precision, "after")
    after = as_shipped(lab, student, lab.data, "queries/test", k=depth, label="after")
    before = retrieve(lab, lab.start, lab.data, "queries/test", k=depth, label="before")
    ceiling = teacher_run(lab, before)
    runs = {"bm25": bm25(lab, lab.data, "queries/test", k=depth), "student_before": before}
    runs |= {"teacher": ceiling[0]} if ceiling else {}
    runs |= {"student": after}
    tables = {name: judge(lab, run, lab.data, "queries/test", LABELS[name]) for name, run in runs.items()}
    if lab.cfg.student.tokens:
        return _measured_late(lab, student, runs, tables, ceiling[1] if ceiling else "")
    index = served_index(lab, student, lab.data, "after", "build index")
    recall = None
    if lab.cfg.index != "Flat":
        asked, kept = (served_vectors(lab, student, lab.data, name, "after") for name in ("queries/test", "corpus"))
        exact = searched_exactly(lab, student, lab.data, "queries/test", k=depth, label="after, exact")
        recall = lab.store.run(measure_index, "recall of index", index=index, queries=asked, passages=kept, run=exact)
    sizes = _measured_sizes(lab, student, passages) if lab.cfg.wants_sizes else None
    cut = {"dim": lab.cfg.vectors.dim} if lab.cfg.vectors.dim is not None else {}
    verified = lab.store.run(
        verify_export,
        "verify export",
        model=student,
        data=lab.data,
        query_tokens=tokens(lab.store, student, lab.data, "queries/test"),
        passage_tokens=tokens(lab.store, student, lab.data, "corpus"),
        **cut,
    )
    return Measured(runs, tables, index, recall, sizes, verified, ceiling[1] if ceiling else "")


def _measured_late(lab: Lab, student: Artifact, runs: dict[str, Artifact], tables: dict[str, Artifact], how: str) -> Measured:
    """As `measured`, of a student with token vectors; a hybrid's pooled vectors are measured beside them."""
    depth, late = lab.cfg.evaluation.depth, late_of(student)
    if late is not None and late.pooled:
        found = pooled_run(lab, student, lab.data, "queries/test", k=depth, label="after")
        means = judge(lab, found, lab.data, "queries/test", "after, pooled").metrics["means"]
        lab.fact("the hybrid's pooled vectors alone", **{name: round(float(value), 4) for name, value in means.items()})
    verified = lab.store.run(
        verify_late_export,
        "verify export",
        model=student,
        data=lab.data,
        query_tokens=tokens(lab.store, student, lab.data, "queries/test"),
        passage_tokens=tokens(lab.store, student, lab.data, "corpus"),
    )
    recall = late_recall(lab, student, runs["student"], k=depth)
    return Measured(runs, tables, served_tokens(lab, student, lab.data, "after"), recall, None, verified, how)


def _measured_sizes(lab: Lab, student: Artifact, passages: Artifact) -> Artifact:
    cfg = lab.cfg
    return lab.store.run(
        measure_sizes,
        "sizes",
        passages=passages,
        queries=vectors(lab.store, student, lab.data, "queries/test", lab.precision, "after"),
        data=lab.data,
        name="queries/test",
        dims=list(cfg.student.dims) if cfg.student.dims else None,
        also=None if cfg.vectors.dim in (cfg.student.dims or ()) else cfg.vectors.dim,
        normalize=layout_of(student).normalize,
        metrics=list(cfg.evaluation.metrics),
        k=cfg.evaluation.depth,
    )


def publish(lab: Lab, student: Artifact, *, out: Folder, began: float) -> dict[str, Any]:
    """Evaluate, compare, ship and write everything under `out`; the report."""
    cfg = lab.cfg
    found = measured(lab, student)
    before, after, tables = found.runs["student_before"], found.runs["student"], found.tables
    values = {name: _table(artifact) for name, artifact in tables.items()}
    report = {
        "name": out.uri.rstrip("/").rpartition("/")[2],
        "recipe": cfg.recipe,
        "method": RECIPES[cfg.recipe].SUMMARY,
        "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": " ".join(["raydrd", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - began, 1),
        "config": cfg.model_dump(mode="json"),
        "data": _data(lab),
        "systems": _systems(lab, values, student, found.how),
        "comparisons": _comparisons(lab, values),
        "queries": values["student"].num_rows,
        "stages": _stages(lab),
        "curve": _curve(lab),
        "preflight": lab.preflights,
        "facts": lab.facts,
        "index": _about_index(lab, student, found),
        "examples": examples(lab.data, values["student_before"], values["student"], before=before, after=after),
        "provenance": {
            **provenance(),
            "seed": _seed(cfg),
            "precision": lab.precision,
            "data_digest": lab.data.id,
            "student": f"{cfg.student.model} ({lab.start.id})",
            "teacher": _named(lab.teacher),
            "other_teachers": [_named(one) for cfg_, one in lab.teachers.items() if cfg_ != cfg.teacher],
            "export_difference": found.verified.metrics["difference"],
        },
        "store": lab.store.root.uri,
        "artifacts": {
            "data": f"load/{lab.data.id}",
            "student": f"{student.stage}/{student.id}",
            "index": f"{found.index.stage}/{found.index.id}",
            "run": f"{after.stage}/{after.id}",
        },
    }
    if found.sizes is not None:
        report["sizes"] = sizes_told(found.sizes, cfg)
    report |= _forecast(lab, report)
    _lay_out(lab, student, found.index, after, values, report, out)
    return report


def _about_index(lab: Lab, student: Artifact, found: Measured) -> dict[str, Any]:
    if lab.cfg.student.tokens:
        assert found.recall is not None
        return about_late(lab, student, found.recall)
    return about_index(found.index, found.recall, served_form(lab, student))


def _table(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(part for _, part in parts_of(artifact).each())


def _named(teacher: Teacher) -> str:
    return f"{teacher.name} ({teacher.identity})" if teacher.identity else teacher.name


def _seed(cfg: Any) -> Any:
    return cfg.trainings()[0].seed


def _data(lab: Lab) -> dict[str, Any]:
    metrics = lab.data.metrics
    counts = {name: metrics.get(name) for name in ("passages", "train", "dev", "test", "unlabelled")}
    notes = list(lab.notes)
    layout = layout_of(lab.start)
    if layout.query_max_len != layout.passage_max_len:
        notes.append(f"queries are cut at {layout.query_max_len} tokens, passages at {layout.passage_max_len}")
    return {**counts, "warnings": metrics.get("warnings", []), "notes": notes}


def _systems(lab: Lab, values: dict[str, pa.Table], student: Artifact, how: str) -> dict[str, Any]:
    speed = {
        "student_before": _speed(lab, lab.start),
        "student": _speed(lab, student),
        "teacher": _speed(lab, lab.teacher.model) if lab.teacher.model else None,
    }
    sizes = {"student_before": lab.start.metrics["size_mb"], "student": student.metrics["size_mb"]}
    own = [t.model.metrics["size_mb"] for t in (lab.teacher, *lab.teacher.members) if t.model]
    sizes |= {"teacher": sum(own)} if own else {}
    about = {
        "bm25": "bm25s, Lucene's formula, k1 1.2, b 0.75, English stems",
        "student_before": _about(lab.start),
        "teacher": how,
        "student": _about(student) + served_words(lab, student),
    }
    found: dict[str, Any] = {}
    for name, table_ in values.items():
        metrics = [column for column in table_.column_names if column != "query_row"]
        numbers = {metric: table_[metric].to_numpy() for metric in metrics}
        seed = lab.cfg.evaluation.seed
        found[name] = {
            **{metric: float(np.mean(v)) for metric, v in numbers.items()},
            "passages_per_s": speed.get(name),
            "size_mb": sizes.get(name),
            "description": about[name],
            "intervals": {
                metric: list(bootstrap_interval(v, seed=seed, samples=lab.cfg.evaluation.samples))
                for metric, v in numbers.items()
            },
        }
    return found


def _about(model: Artifact) -> str:
    metrics = model.metrics
    if late_of(model) is not None:
        return about_model(model)
    layout = layout_of(model)
    return f"{metrics['layers']} layers, {metrics['width']} dimensions, {layout.pooling} pooling, {layout.similarity}"


def _speed(lab: Lab, model: Artifact) -> float | None:
    """Passages a second of one worker when this model embedded the corpus (measured when it was made)."""
    if "width" not in model.metrics:
        return None  # a cross-encoder encodes no passages: its pairs a second stand in the stages
    own = vectors if late_of(model) is None else token_vectors
    made = own(lab.store, model, lab.data, "corpus", lab.precision, "")  # exists by now
    found = made.metrics.get("per_second")
    return float(found) if found else None


def _comparisons(lab: Lab, values: dict[str, pa.Table]) -> list[dict[str, Any]]:
    found = []
    evaluation = lab.cfg.evaluation
    for other in (name for name in ("student_before", "teacher", "bm25") if name in values):
        for metric in (c for c in values["student"].column_names if c != "query_row"):
            a, b = values["student"][metric].to_numpy(), values[other][metric].to_numpy()
            result = compare(a, b, seed=evaluation.seed, samples=evaluation.samples)
            found.append({"a": "student", "b": other, "metric": metric, **asdict(result)})
    return found


def _stages(lab: Lab) -> list[dict[str, Any]]:
    rows = []
    for record in lab.store.journal:
        made = record.seconds if not record.reused else lab.store.find(record.name, record.id).manifest["seconds"]
        rows.append({**asdict(record), "seconds": round(float(made), 3)})
    return rows


def _forecast(lab: Lab, report: dict[str, Any]) -> dict[str, Any]:
    """What `raydrd plan` foresaw for this config, beside what it took; nothing where nobody asked."""
    name = f"{forecast.FOLDER}/{forecast.key_of(report['config'])}"
    if not lab.store.root.exists(name):
        return {}
    found = forecast.compared(lab.store.root.read_json(name), report["stages"], report["seconds"])
    return {"forecast": found} if found else {}


def _curve(lab: Lab) -> dict[str, Any]:
    """Training losses of all segments on one axis of steps; long ones thinned to some 200 points each."""
    loss: list[list[float]] = []
    dev: list[list[Any]] = []
    segments = []
    start = 0
    for number, segment in enumerate(lab.segments):
        curve = segment["model"].folder.read_json("curve.json")
        stride = max(1, len(curve) // 200)
        loss += [[start + int(step), value, number] for step, value, _ in curve[::stride]]
        end = start + segment["steps"]
        if segment["dev_before"] and number == 0:
            dev.append([start, segment["dev_before"]])
        if segment["dev_after"]:
            dev.append([end, segment["dev_after"]])
        segments.append({"label": segment["label"], "start": start, "end": end, **_gate(segment)})
        start = end
    return {"loss": loss, "dev": dev, "segments": segments}


def _gate(segment: dict[str, Any]) -> dict[str, Any]:
    return {key: segment[key] for key in ("dev_before", "dev_after", "dropped")}


# -- the folder -------------------------------------------------------------------------------------


def _lay_out(
    lab: Lab,
    student: Artifact,
    index: Artifact,
    after: Artifact,
    values: dict[str, pa.Table],
    report: dict[str, Any],
    out: Folder,
) -> None:
    out.delete_file("report.json")
    out.write_bytes("config.yaml", yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True).encode())
    for name, sign in (("model", "raydrd.json"), ("index", "meta.json")):
        if (out / name).files() and not (out / name).exists(sign):
            raise InputError(f"--out {out}: its folder {name}/ is none of ours and would be lost; name another folder")
        (out / name).delete()
    _copy(model_folder(student), out / "model")
    if lab.cfg.student.tokens:
        lay_out_tokens(lab, student, out / "index")
    else:
        _copy(index.folder / "index", out / "index")
    if lab.cfg.vectors.dim is not None:
        (out / "model").write_bytes(CARD, truncated((out / "model").read_bytes(CARD), lab.cfg.vectors.dim))
    (out / "model").write_bytes("README.md", model_card(report, layout_of(student)).encode())
    about = {
        "kind": lab.cfg.student.kind,
        "metric": "inner product",
        "similarity": "maxsim" if lab.cfg.student.tokens else layout_of(student).similarity,
        "width": lab.cfg.vectors.dim or student.metrics["width"],
        **report["index"],
        "passages": lab.data.metrics["passages"],
        "model": f"{student.stage}/{student.id}",
        "store": lab.store.root.uri,
        "data": lab.data.id,
    }
    (out / "index").write_json("meta.json", about)
    with out.writing("run.trec") as stream:
        for line in _trec(lab, after):
            stream.write(line.encode())
    out.write_table("per_query.parquet", _per_query(lab, values))
    write_page(report, out=out)
    out.write_json("report.json", report)  # last: a run folder with a report is whole


def _copy(source: Folder, target: Folder) -> None:
    for name in source.files():
        with source.reading(name) as data, target.writing(name) as stream:
            shutil.copyfileobj(data, stream, 1 << 22)


def _trec(lab: Lab, run: Artifact) -> Iterator[str]:
    """`qid Q0 docid rank score raydrd`, block by block."""
    corpus = table(lab.data, "corpus")
    queries = table(lab.data, "queries/test")
    for part, rows in parts_of(run).each():
        ids = queries.slice(part.lo, part.hi)["query_id"].to_pylist()
        flat = np.unique(np.asarray(rows["doc_rows"].combine_chunks().flatten()))
        docs = dict(zip(flat.tolist(), corpus.take(flat, ["doc_id"])["doc_id"].to_pylist(), strict=True))
        for query, found, scores in zip(ids, rows["doc_rows"].to_pylist(), rows["scores"].to_pylist(), strict=True):
            for rank, (doc, score) in enumerate(zip(found, scores, strict=True), 1):
                yield f"{query} Q0 {docs[doc]} {rank} {score:.6f} raydrd\n"


def _per_query(lab: Lab, values: dict[str, pa.Table]) -> pa.Table:
    """Every metric of every system by query, and what `raydrd compare` cuts queries by: the store may be gone then."""
    rows = values["student"]["query_row"].to_numpy()
    about = traits(table(lab.data, "queries/test"), table(lab.data, "corpus"), rows=rows)
    columns: dict[str, Any] = {name: about[name] for name in about.column_names}
    for name, found in values.items():
        columns.update({f"{name} {metric}": found[metric] for metric in found.column_names if metric != "query_row"})
    return pa.table(columns)
