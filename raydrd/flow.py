"""The parts of a run that every recipe shares: open, retrieve, score, watch. Just below the recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from raydrd.data.collect import digest
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.layout import find_model, folder_digest, read_layout
from raydrd.objectives import SameVectors
from raydrd.precision import Precision, resolve
from raydrd.setting import BiEncoderTeacher, CrossEncoderTeacher, ReadyScores, Setting
from raydrd.stages.adopt import Model as AnyModel
from raydrd.stages.adopt import adopt, layout_of, located, model_folder, wanted_layout
from raydrd.stages.embed import embed
from raydrd.stages.evaluate import evaluate
from raydrd.stages.load import (
    load,
    make_queries,
    report_load,
    sample_dev,
    table,
    take_run,
)
from raydrd.stages.score import import_teacher, rerank, score_pairs, score_vectors, take_scores
from raydrd.stages.search import bm25_index, bm25_search, join_candidates, search
from raydrd.stages.tokenize import tokenize
from raydrd.stages.train import imitate
from raydrd.store import Artifact, Located, Store


@dataclass
class Lab:
    """One run's things: its config, its store, its data and models. Recipes read it, stages never see it."""

    cfg: Setting
    store: Store
    precision: Precision
    data: Artifact
    train_data: Artifact
    dev_data: Artifact
    start: Artifact
    original: Artifact
    teacher: Artifact | None  # None: ready-made scores teach
    teacher_digest: str
    notes: list[str] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)


def check_setting(cfg: Setting) -> None:
    """What can be refused before anything is read.

    Raises:
        InputError: sources that are not there.
    """
    if "run" in cfg.candidates.sources and not cfg.data.run:
        raise InputError("candidates.sources: has run, but data.run names no run file; set data.run or remove it")
    if "teacher" in cfg.candidates.sources and not isinstance(cfg.teacher, BiEncoderTeacher):
        raise InputError("candidates.sources: a cross_encoder teacher cannot search a corpus; write [student], [bm25] or both")
    if isinstance(cfg.teacher, ReadyScores) and not cfg.data.scores:
        raise InputError("teacher.kind: scores needs data.scores: a Parquet file with query_id, doc_id, score")
    if isinstance(cfg.teacher, ReadyScores) and cfg.queries.count:
        raise InputError("queries.count: queries made from the corpus have no ready-made scores; set queries.count=0")
    if cfg.data.scores and not isinstance(cfg.teacher, ReadyScores):
        raise InputError("data.scores: only teacher.kind: scores reads them; set it, or remove data.scores")
    if cfg.recover is not None and cfg.student.layers is None:
        raise InputError("recover: only a student cut by student.layers has anything to recover; set it, or recover=null")
    if cfg.data.run and cfg.queries.count:
        raise InputError("queries.count: queries made from the corpus have no candidates in data.run; set queries.count=0")


def open_lab(cfg: Setting, store: Store) -> Lab:
    """Data read and checked, models found and adopted.

    Raises:
        InputError: anything wrong with config, data or models; before any model has run.
    """
    check_setting(cfg)
    precision = resolve(cfg.precision, gpu=store.cluster.has_gpu)
    student_source = located(cfg.student)
    teacher_source = None if isinstance(cfg.teacher, ReadyScores) else located_teacher(cfg.teacher)
    data = store.run(load, data=located_data(cfg.data))
    report_load(data)
    notes = list(data.metrics.get("notes", []))
    if not table(data, "queries/test").rows:
        raise InputError("data.test_split: there are no test queries; name a split that has judgements")

    original_layout = wanted_layout(cfg.student, read_layout(student_source.where))
    start = store.run(adopt, "student before", source=student_source, layout=original_layout, layers=plain(cfg.student.layers))
    original = start
    if cfg.student.layers is not None and cfg.recover is not None:
        original = store.run(adopt, "student uncut", source=student_source, layout=original_layout, layers=None)
    teacher = None
    if teacher_source is not None and isinstance(cfg.teacher, BiEncoderTeacher):
        layout = wanted_layout(cfg.teacher, read_layout(teacher_source.where))
        teacher = store.run(adopt, "teacher", source=teacher_source, layout=layout, layers=None)
    elif teacher_source is not None:
        teacher = store.run(import_teacher, "teacher", source=teacher_source)

    train_data = data
    if cfg.queries.count:
        made = cfg.queries
        train_data = store.run(
            make_queries, "make queries", data=data, count=made.count, sentences=made.sentences, seed=made.seed
        )
        notes.append(f"{train_data.metrics['made']:,} unlabelled training queries were made from passages")
    if not table(train_data, "queries/train").rows:
        raise InputError("there is nothing to train on: no train queries; set queries.count to make some from the corpus")
    dev = cfg.evaluation
    dev_data = store.run(sample_dev, "sample dev", data=data, passages=dev.dev_passages, queries=dev.dev_queries, seed=dev.seed)
    return Lab(
        cfg=cfg, store=store, precision=precision, data=data, train_data=train_data, dev_data=dev_data, start=start,
        original=original, teacher=teacher, teacher_digest=str(teacher_source.identity) if teacher_source else "", notes=notes,
    )  # fmt: skip


def located_data(data: Data) -> Located:
    """A collection by its content and how it is read, not by where its files lie."""
    reading = data.model_dump(mode="json", exclude={"path", "corpus", "queries", "qrels", "run", "scores"})
    return Located(identity={"digest": digest(data), "reading": reading, "version": data.version}, where=data)


def plain(layers: int | tuple[int, ...] | None) -> int | list[int] | None:
    return list(layers) if isinstance(layers, tuple) else layers


def located_teacher(teacher: BiEncoderTeacher | CrossEncoderTeacher) -> Located:
    if isinstance(teacher, AnyModel):
        return located(teacher)
    path = find_model(teacher.model, revision=teacher.revision)
    return Located(identity=folder_digest(path), where=path)


# -- texts to candidates ----------------------------------------------------------------------------


def tokens(store: Store, model: Artifact, data: Artifact, name: str) -> Artifact:
    """Token ids of table `name` by this model's tokenizer; shared by all models with the same one."""
    role = "passage" if name == "corpus" else "query"
    layout, prompt, lowercase = None, "", False
    if "layout" in model.metrics:
        layout = layout_of(model)
        prompt, lowercase = layout.prompt(role), layout.lowercase
    where = (model_folder(model), layout.folder(role) if layout else "")
    known = Located(identity=model.metrics["tokenizer"], where=where)
    return store.run(tokenize, f"tokenize {name}", data=data, name=name, tokenizer=known, prompt=prompt, lowercase=lowercase)


def vectors(store: Store, model: Artifact, data: Artifact, name: str, precision: Precision, label: str) -> Artifact:
    """Vectors of table `name` by the tower of its role."""
    role = "passage" if name == "corpus" else "query"
    made = tokens(store, model, data, name)
    what = "passages" if role == "passage" else f"{name.removeprefix('queries/')} queries"
    return store.run(embed, f"embed {what} ({label})", model=model, role=role, tokens=made, precision=precision)


def retrieve(lab: Lab, model: Artifact, data: Artifact, name: str, *, k: int, label: str) -> Artifact:
    """Exact search of table `name` with a bi-encoder: embed both sides, then the k best passages a query."""
    passages = vectors(lab.store, model, data, "corpus", lab.precision, label)
    queries = vectors(lab.store, model, data, name, lab.precision, label)
    return lab.store.run(search, f"search {name.removeprefix('queries/')} ({label})", queries=queries, passages=passages, k=k)


def bm25(lab: Lab, data: Artifact, name: str, *, k: int) -> Artifact:
    index = lab.store.run(bm25_index, "index bm25", data=lab.data)
    return lab.store.run(bm25_search, f"search {name.removeprefix('queries/')} (bm25)", index=index, data=data, name=name, k=k)


def mine(lab: Lab, student: Artifact) -> Artifact:
    """Candidates of the training queries, from the config's sources."""
    wanted = lab.cfg.candidates
    found: list[Artifact] = []
    for source in wanted.sources:
        if source == "run":
            found.append(lab.store.run(take_run, "candidates from run", data=lab.data))
        elif source == "bm25":
            found.append(bm25(lab, lab.train_data, "queries/train", k=wanted.depth))
        else:
            model = student if source == "student" else _teacher(lab)
            passages = vectors(lab.store, model, lab.data, "corpus", lab.precision, source)
            queries = vectors(lab.store, model, lab.train_data, "queries/train", lab.precision, source)
            found.append(lab.store.run(search, f"search train ({source})", queries=queries, passages=passages, k=wanted.depth))
    if len(found) == 1:
        return found[0]
    return lab.store.run(join_candidates, "join candidates", sources=found, depth=wanted.depth)


def scored_candidates(lab: Lab, student: Artifact) -> Artifact:
    """Candidates of the training queries with the teacher's scores: mined and scored, or ready-made."""
    if isinstance(lab.cfg.teacher, ReadyScores):
        return lab.store.run(take_scores, "take ready-made scores", data=lab.data)
    return teach(lab, mine(lab, student), lab.train_data, "queries/train")


def _teacher(lab: Lab) -> Artifact:
    if lab.teacher is None:
        raise InputError("teacher.kind: ready-made scores cannot score anything else; name a model")
    return lab.teacher


def teach(lab: Lab, candidates: Artifact, data: Artifact, name: str) -> Artifact:
    """Candidates of table `name` with the teacher's scores."""
    what = name.removeprefix("queries/")
    if isinstance(lab.cfg.teacher, BiEncoderTeacher):
        passages = vectors(lab.store, _teacher(lab), lab.data, "corpus", lab.precision, "teacher")
        queries = vectors(lab.store, _teacher(lab), data, name, lab.precision, "teacher")
        return lab.store.run(
            score_vectors, f"score {what} (teacher)", candidates=candidates, queries=queries, passages=passages
        )
    assert isinstance(lab.cfg.teacher, CrossEncoderTeacher)
    return lab.store.run(
        score_pairs,
        f"score {what} (teacher)",
        candidates=candidates,
        query_tokens=tokens(lab.store, _teacher(lab), data, name),
        passage_tokens=tokens(lab.store, _teacher(lab), lab.data, "corpus"),
        teacher=Located(identity=lab.teacher_digest, where=model_folder(_teacher(lab))),
        max_length=lab.cfg.teacher.max_length,
        precision=lab.precision,
    )


# -- measuring --------------------------------------------------------------------------------------


def judge(lab: Lab, run: Artifact, data: Artifact, name: str, label: str) -> Artifact:
    metrics = list(lab.cfg.evaluation.metrics)
    return lab.store.run(evaluate, f"evaluate {label}", run=run, data=data, name=name, metrics=metrics)


def dev_metrics(lab: Lab, student: Artifact, label: str) -> dict[str, float] | None:
    """Dev metrics of a student on the sampled dev collection; None where there are no dev queries."""
    if not table(lab.dev_data, "queries/dev").rows:
        return None
    run = retrieve(lab, student, lab.dev_data, "queries/dev", k=lab.cfg.evaluation.depth, label=label)
    return dict(judge(lab, run, lab.dev_data, "queries/dev", f"dev ({label})").metrics["means"])


def learn(lab: Lab, before: Artifact, label: str, make: Callable[[], Artifact]) -> Artifact:
    """One training stage with dev metrics before and after it, noted for the report."""
    first = lab.segments[-1]["dev_after"] if lab.segments else dev_metrics(lab, before, "before")
    after = make()
    found = dev_metrics(lab, after, label)
    lab.segments.append(
        {"label": label, "model": after, "steps": int(after.metrics["rows"]), "dev_before": first, "dev_after": found}
    )
    return after


def recovered(lab: Lab) -> Artifact:
    """The start, or where it was cut and `recover` is set, the start after learning its original's vectors again."""
    recover, student = lab.cfg.recover, lab.start
    if recover is None or lab.original.id == lab.start.id:
        return student
    texts = lab.data
    if lab.data.metrics["passages"] > recover.passages:
        texts = lab.store.run(
            sample_dev, "sample to recover", data=lab.data, passages=recover.passages, queries=0, seed=recover.train.seed
        )
    store, data = lab.store, lab.train_data
    passage_vectors = vectors(store, lab.original, texts, "corpus", lab.precision, "uncut")
    query_vectors = vectors(store, lab.original, data, "queries/train", lab.precision, "uncut")
    return learn(
        lab,
        student,
        "recover",
        lambda: store.run(
            imitate,
            "train recover",
            start=student,
            query_tokens=tokens(store, student, data, "queries/train"),
            passage_tokens=tokens(store, student, texts, "corpus"),
            query_vectors=query_vectors,
            passage_vectors=passage_vectors,
            objective=SameVectors(),
            config=recover.train,
            precision=lab.precision,
        ),
    )


def teacher_run(lab: Lab, before: Artifact) -> tuple[Artifact, str] | None:
    """The teacher on the test queries: its own search, or for a reranker the candidates of BM25 and the start.

    None for ready-made scores.
    """
    if lab.teacher is None:
        return None
    depth = lab.cfg.evaluation.depth
    if isinstance(lab.cfg.teacher, BiEncoderTeacher):
        return retrieve(
            lab, lab.teacher, lab.data, "queries/test", k=depth, label="teacher"
        ), "bi-encoder, searching the corpus"
    pool = lab.store.run(
        join_candidates, "join test candidates", sources=[bm25(lab, lab.data, "queries/test", k=depth), before], depth=depth
    )
    scored = teach(lab, pool, lab.data, "queries/test")
    best = lab.store.run(rerank, "re-rank test (teacher)", scored=scored, k=depth)
    return best, f"cross-encoder, re-ranking {depth} passages of BM25 and the start"
