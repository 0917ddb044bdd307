"""Texts to candidates: tokens, vectors, searches, and what training queries are compared with."""

from __future__ import annotations

from raydrd.errors import InputError
from raydrd.flow.lab import Lab, searcher
from raydrd.spine.precision import Precision
from raydrd.spine.progress import say
from raydrd.spine.store import Artifact, Located, Stage, Store
from raydrd.stages.adopt import late_of, layout_of, model_folder
from raydrd.stages.bm25 import bm25_index, bm25_search
from raydrd.stages.combine import first_candidates, with_positives
from raydrd.stages.embed import embed
from raydrd.stages.late.embed import embed_pooled, embed_tokens
from raydrd.stages.late.search import search_tokens
from raydrd.stages.load import take_run
from raydrd.stages.search import join_candidates, search
from raydrd.stages.tokenize import tokenize


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
    """Vectors of table `name` by the tower of its role: one a text, or one a token where the model gives nothing else."""
    late = late_of(model)
    stage = embed if late is None else embed_pooled if late.pooled else embed_tokens
    return _embedded(store, stage, "embed", model, data, name, precision, label)


def token_vectors(store: Store, model: Artifact, data: Artifact, name: str, precision: Precision, label: str) -> Artifact:
    """One vector a token of table `name`, by a model that has them."""
    late = late_of(model)
    what = "embed tokens of" if late is not None and late.pooled else "embed"
    return _embedded(store, embed_tokens, what, model, data, name, precision, label)


def _embedded(
    store: Store, stage: Stage, verb: str, model: Artifact, data: Artifact, name: str, precision: Precision, label: str
) -> Artifact:
    role = "passage" if name == "corpus" else "query"
    made = tokens(store, model, data, name)
    what = "passages" if role == "passage" else f"{name.removeprefix('queries/')} queries"
    return store.run(stage, f"{verb} {what} ({label})", model=model, role=role, tokens=made, precision=precision)


def retrieve(
    lab: Lab, model: Artifact, data: Artifact, name: str, *, k: int, label: str, corpus: Artifact | None = None
) -> Artifact:
    """Exact search of table `name`: embed both sides, then the k best passages a query; by MaxSim of token vectors where the
    model has them.

    corpus: the collection whose passages are searched, if it is another one than `data`.
    """
    what = f"search {name.removeprefix('queries/')} ({label})"
    own, stage = (vectors, search) if late_of(model) is None else (token_vectors, search_tokens)
    passages = own(lab.store, model, corpus or data, "corpus", lab.precision, label)
    queries = own(lab.store, model, data, name, lab.precision, label)
    return lab.store.run(stage, what, queries=queries, passages=passages, k=k)


def bm25(lab: Lab, data: Artifact, name: str, *, k: int, corpus: Artifact | None = None) -> Artifact:
    """BM25 search of table `name` of `data` in the corpus (or another collection's)."""
    index = lab.store.run(bm25_index, "index bm25", data=corpus or lab.data)
    return lab.store.run(bm25_search, f"search {name.removeprefix('queries/')} (bm25)", index=index, data=data, name=name, k=k)


def mine(
    lab: Lab,
    student: Artifact,
    *,
    label: str = "student",
    positives: bool = False,
    sources: tuple[str, ...] = (),
    depth: int | None = None,
) -> Artifact:
    """Candidates of the training queries, from the config's sources unless told; `label` names the student in progress lines.

    positives: labelled positives that no source found join the candidates, so that the teacher scores them too.
    """
    depth = depth or lab.cfg.candidates.depth
    found: list[Artifact] = []
    for source in sources or lab.cfg.candidates.sources:
        if source == "run":
            found.append(lab.store.run(take_run, "candidates from run", data=lab.data))
        elif source == "bm25":
            found.append(bm25(lab, lab.train_data, "queries/train", k=depth))
        else:
            model = student if source == "student" else _searching_teacher(lab)
            who = label if source == "student" else source
            found.append(retrieve(lab, model, lab.train_data, "queries/train", k=depth, label=who, corpus=lab.data))
    joined = found[0]
    if len(found) > 1:
        joined = lab.store.run(join_candidates, "join candidates", sources=found, depth=depth)
    whole, scored = joined, lab.cfg.candidates.scored
    if scored is not None and not sources:
        joined = lab.store.run(first_candidates, "cut candidates", candidates=joined, k=scored)
    if positives:
        joined = lab.store.run(with_positives, "add positives", candidates=joined, data=lab.train_data)
    lab.deeper[joined.id] = whole  # teachers that are trained here draw negatives from all that was found
    return joined


def tell_mined_once(lab: Lab) -> None:
    """For recipes whose later rounds mine by the better student: say so where the config's sources leave it out."""
    if "student" in lab.cfg.candidates.sources:
        return
    line = "candidates.sources has no student: rounds do not mine anew"
    lab.notes.append(line)
    if not lab.dry:
        say(line)


def _searching_teacher(lab: Lab) -> Artifact:
    wanted = searcher(lab.cfg)
    members = lab.teacher.members or (lab.teacher,)
    model = next((member.model for member in members if member.cfg == wanted), None)
    if model is None:
        raise InputError("candidates.sources: only a bi_encoder teacher can search a corpus; write [student] or [bm25]")
    return model
