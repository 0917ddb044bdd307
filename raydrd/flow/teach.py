"""Teachers at work: trained here if they ask for it, tried before they are paid for, then scoring candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raydrd.errors import InputError
from raydrd.flow.lab import Lab
from raydrd.flow.preflight import preflight, preflight_pairs
from raydrd.flow.retrieve import bm25, mine, retrieve, tokens, vectors
from raydrd.flow.teachers import Teacher
from raydrd.methods.neighbours import NeighbourPairs
from raydrd.methods.objectives import Contrastive, Duels, Losses
from raydrd.models.prompts import prompt_of
from raydrd.setting import BiEncoderTeacher, Escalation, PromptedTeacher, ReadyScores
from raydrd.spine.store import Artifact, Located
from raydrd.stages.adopt import model_folder
from raydrd.stages.assemble import assemble
from raydrd.stages.combine import blend
from raydrd.stages.duel import sample_pairs, score_duels
from raydrd.stages.escalate import choose, fit_line, join_scores, share_budget
from raydrd.stages.order import score_lists
from raydrd.stages.score import rerank, score_pairs, score_vectors, take_scores
from raydrd.stages.search import join_candidates
from raydrd.stages.train import train, train_reranker


def scored_candidates(
    lab: Lab,
    student: Artifact,
    *,
    teacher: Teacher | None = None,
    label: str = "student",
    positives: bool = False,
) -> Artifact:
    """Candidates of the training queries with the teacher's scores: mined and scored, or ready-made.

    The teacher (default the config's own) is trained on these candidates first if it asks for training, and tried on
    dev.
    """
    teacher = teacher or lab.teacher
    if isinstance(teacher.cfg, ReadyScores):
        return lab.store.run(take_scores, "take ready-made scores", data=lab.data)
    found = mine(lab, student, label=label, positives=positives)
    trained = ready(lab, teacher, found)
    scored = teach(lab, trained, found, lab.train_data, "queries/train", label=label)
    lab.deeper[scored.id] = lab.deeper.get(found.id, found)
    return scored


def ready(lab: Lab, teacher: Teacher, candidates: Artifact, *, anew: bool = False) -> Teacher:
    """The teacher after its training on these candidates, if it asks for one, and after its preflight.

    A teacher that was trained before stays as it is unless `anew`.
    """
    known = lab.teachers.get(teacher.cfg, teacher)
    trained = (
        known if known.is_trained and not anew else trained_teacher(lab, teacher, lab.deeper.get(candidates.id, candidates))
    )
    lab.teachers[teacher.cfg] = trained
    preflight(lab, trained, lambda pool, data, name: teach(lab, trained, pool, data, name, corpora=[data], label="dev"))
    return trained


def trained_teacher(lab: Lab, teacher: Teacher, candidates: Artifact) -> Teacher:
    """A teacher that has learnt to rank the labelled positives of the training queries above mined passages."""
    if teacher.members:
        return replace(teacher, members=tuple(trained_teacher(lab, member, candidates) for member in teacher.members))
    training = getattr(teacher.cfg, "train", None)
    if training is None or teacher.model is None:
        return teacher
    lists = lab.store.run(assemble, f"lists for {teacher.name}", scored=candidates, data=lab.train_data, rule=training.lists)
    if not lists.metrics["rows"]:
        raise InputError("teacher.train: no train query is labelled, so there is nothing to train a teacher on; remove it")
    is_bi = isinstance(teacher.cfg, BiEncoderTeacher)
    texts = {
        "query_tokens": tokens(lab.store, teacher.model, lab.train_data, "queries/train"),
        "passage_tokens": tokens(lab.store, teacher.model, lab.data, "corpus"),
    }
    scale = training.score_scale if is_bi else 1.0
    listwise = Losses(terms=(Contrastive(in_batch=is_bi),), score_scale=scale)
    label = f"train teacher {teacher.name}"
    if is_bi:
        model = lab.store.run(
            train, label, start=teacher.model, lists=lists, **texts, objective=listwise, config=training.train,
            precision=lab.precision,
        )  # fmt: skip
    else:
        duels = teacher.cfg in lab.cfg.pair_teachers()
        model = lab.store.run(
            train_reranker, label, start=teacher.model, lists=lists, **texts, objective=Duels() if duels else listwise,
            config=training.train, precision=lab.precision, max_length=teacher.cfg.max_length, duels=duels,
        )  # fmt: skip
    return replace(teacher, model=model, identity=f"trained:{model.id}")


def teach(
    lab: Lab,
    teacher: Teacher,
    candidates: Artifact,
    data: Artifact,
    name: str,
    *,
    corpora: list[Artifact] | None = None,
    reference: Artifact | None = None,
    label: str = "",
) -> Artifact:
    """Candidates of table `name` with the teacher's scores.

    corpora: the collections whose passages, one after the other, the candidates' rows count (default the corpus).
    reference: for an ensemble, what it scored before: the members' scores there standardise those of `candidates`. For an
    escalation, what it scored before with the line that was drawn there.
    """
    corpora = corpora or [lab.data]
    what = name.removeprefix("queries/") + (f", {label}" if label not in ("", "student") else "")
    if isinstance(teacher.cfg, Escalation):
        return _escalated(lab, teacher, candidates, data, name, corpora=corpora, reference=reference, label=label, what=what)
    if teacher.members:
        members = [teach(lab, m, candidates, data, name, corpora=corpora, label=label) for m in teacher.members]
        bases = lab.blended[reference.id] if reference is not None else None
        blended = lab.store.run(blend, f"blend {what}", members=members, references=bases)
        lab.blended[blended.id] = members
        return blended
    if teacher.model is None:
        raise InputError("teacher.kind: ready-made scores cannot score anything else; name a model")
    model, short = teacher.model, teacher.name.rpartition("/")[2]
    if isinstance(teacher.cfg, BiEncoderTeacher):
        passages = [vectors(lab.store, model, one, "corpus", lab.precision, "teacher") for one in corpora]
        queries = vectors(lab.store, model, data, name, lab.precision, "teacher")
        return lab.store.run(score_vectors, f"score {what}", candidates=candidates, queries=queries, passages=_one(passages))
    prompted = isinstance(teacher.cfg, PromptedTeacher)
    asked: dict[str, Any] = {
        "candidates": candidates,
        "query_tokens": tokens(lab.store, model, data, name),
        "passage_tokens": _one([tokens(lab.store, model, one, "corpus") for one in corpora]),
        "teacher": _placed(teacher),
        "max_length": teacher.cfg.max_length,
        "precision": lab.precision,
    }
    if isinstance(teacher.cfg, PromptedTeacher) and teacher.cfg.listwise:
        asked |= {"prompt": prompt_of(teacher.cfg.prompt), "window": teacher.cfg.window, "stride": teacher.cfg.stride}
        ordered = lab.store.run(score_lists, f"score {what} ({short})", **asked)
        tell_order(lab, what, ordered)
        return ordered
    asked |= {"kind": "prompted", "prompt": prompt_of(teacher.cfg.prompt), **_engine(teacher)} if prompted else {}
    return lab.store.run(score_pairs, f"score {what} ({short})", **asked)


def _engine(teacher: Teacher) -> dict[str, Any]:
    """Named only where it is not the usual one, so that scores from before there were two are still found."""
    return {} if getattr(teacher.cfg, "engine", "transformers") == "transformers" else {"engine": teacher.cfg.engine}


def tell_order(lab: Lab, what: str, ordered: Artifact) -> None:
    """For the report: what a listwise teacher wrote, and what had to be mended in it."""
    if lab.dry:
        return
    told = {"windows": "windows put in order", "unread": "answers that named no passage", "missing": "passages left out"}
    told |= {"repeated": "passages named again", "unknown": "passages named that were not there"}
    lab.fact(f"order of {what}", **{line: ordered.metrics[name] for name, line in told.items()})


def _escalated(
    lab: Lab, teacher: Teacher, candidates: Artifact, data: Artifact, name: str, *, corpora: list[Artifact],
    reference: Artifact | None, label: str, what: str,
) -> Artifact:  # fmt: skip
    """The cheap teacher's scores of all candidates, the expensive one's in place of those that were in doubt."""
    cheap, expensive = teacher.members
    scored = teach(lab, cheap, candidates, data, name, corpora=corpora, label=label)
    by, spend = teacher.cfg.by, teacher.cfg.spend
    shared: dict[str, Any] = {}
    if by == "gap" and spend["share"] is not None:
        shared["level"] = lab.store.run(share_budget, f"share budget {what}", scored=scored, share=spend["share"])
    doubtful = lab.store.run(choose, f"escalate {what}", scored=scored, by=by, **spend, **shared)
    if not lab.dry and not doubtful.metrics["pairs"]:
        return scored
    told = ", ".join([label, "escalated"] if label not in ("", "student") else ["escalated"])
    asked = teach(lab, expensive, doubtful, data, name, corpora=corpora, label=told)
    known = lab.blended.get(reference.id) if reference is not None else None
    fitted = known[0] if known else lab.store.run(fit_line, f"fit {what}", cheap=scored, expensive=asked)
    joined = lab.store.run(join_scores, f"join {what}", cheap=scored, expensive=asked, fitted=fitted)
    lab.blended[joined.id] = [fitted]
    if not lab.dry:
        went, of = int(doubtful.metrics["pairs"]), int(doubtful.metrics["of"])
        spent = {f"pairs that {cheap.name} scored": of, f"of them {expensive.name} too": went, "share": went / of}
        lab.fact(f"escalation of {what}", **spent, **{"correlation of the two": fitted.metrics["agreement"]})
    return joined


def _placed(teacher: Teacher) -> Located:
    """A reranker for a scoring stage: known by what made it; its scores are kept under the digest of its files."""
    assert teacher.model is not None
    weights = str(teacher.model.metrics.get("weights", ""))
    return Located(identity=teacher.identity, where=model_folder(teacher.model), digest=weights)


def _one(artifacts: list[Artifact]) -> Artifact | list[Artifact]:
    return artifacts[0] if len(artifacts) == 1 else artifacts


def duels(
    lab: Lab, teacher: Teacher, scored: Artifact, rule: NeighbourPairs, *, symmetrize: bool, label: str = "student"
) -> Artifact:
    """Neighbouring candidates compared by a pairwise teacher, which is trained on these candidates if it asks for it."""
    trained = lab.teachers[teacher.cfg]
    if not trained.is_trained:
        trained = lab.teachers[teacher.cfg] = trained_teacher(lab, teacher, lab.deeper.get(scored.id, scored))
    assert trained.model is not None
    preflight_pairs(lab, trained, lambda pairs, data: _compared(lab, trained, pairs, data, "queries/dev", True, "dev"))
    pairs = lab.store.run(sample_pairs, f"sample pairs ({label})", scored=scored, data=lab.train_data, rule=rule)
    return _compared(lab, trained, pairs, lab.train_data, "queries/train", symmetrize, label)


def _compared(lab: Lab, teacher: Teacher, pairs: Artifact, data: Artifact, name: str, symmetrize: bool, label: str) -> Artifact:
    """Pairs of table `name` with P(left is better); rows of dev pairs count the dev collection's own passages."""
    assert teacher.model is not None
    prompted = isinstance(teacher.cfg, PromptedTeacher)
    corpus = data if name == "queries/dev" else lab.data
    return lab.store.run(
        score_duels,
        f"compare pairs ({label})",
        pairs=pairs,
        query_tokens=tokens(lab.store, teacher.model, data, name),
        passage_tokens=tokens(lab.store, teacher.model, corpus, "corpus"),
        kind=teacher.cfg.kind,
        teacher=_placed(teacher),
        prompt=prompt_of(teacher.cfg.prompt) if prompted else None,
        max_length=teacher.cfg.max_length,
        precision=lab.precision,
        symmetrize=symmetrize,
        **_engine(teacher),
    )


def teacher_run(lab: Lab, before: Artifact) -> tuple[Artifact, str] | None:
    """The teacher on the test queries: its own search, or for a reranker the candidates of BM25 and the start.

    None for ready-made scores.
    """
    teacher = lab.teacher
    if isinstance(teacher.cfg, ReadyScores):
        return None
    depth = lab.cfg.evaluation.depth
    if isinstance(teacher.cfg, BiEncoderTeacher):
        assert teacher.model is not None
        run = retrieve(lab, teacher.model, lab.data, "queries/test", k=depth, label="teacher")
        return run, "bi-encoder, searching the corpus"
    depth = min(depth, lab.cfg.evaluation.teacher_depth)
    sources = [bm25(lab, lab.data, "queries/test", k=depth), before]
    for member in teacher.members:
        if isinstance(member.cfg, BiEncoderTeacher) and member.model is not None:
            sources.append(retrieve(lab, member.model, lab.data, "queries/test", k=lab.cfg.evaluation.depth, label="teacher"))
    pool = lab.store.run(join_candidates, "join test candidates", sources=sources, depth=depth)
    best = lab.store.run(rerank, "re-rank test (teacher)", scored=teach(lab, teacher, pool, lab.data, "queries/test"), k=depth)
    kind = {"escalate": "escalation"}.get(teacher.cfg.kind, teacher.cfg.kind).replace("_", "-")
    others = ", its own bi-encoder" if len(sources) > 2 else ""
    return best, f"{kind}, re-ranking {depth} passages of BM25, the start{others}"
