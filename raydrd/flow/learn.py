"""Training stages of the student, with a look at dev before and after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raydrd.errors import InputError
from raydrd.flow.judge import judge
from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import mine, token_vectors, tokens, vectors
from raydrd.flow.serve import as_shipped
from raydrd.methods.nested import Nested
from raydrd.methods.objectives import Contrastive, Losses, SameVectors
from raydrd.methods.tokenwise import Both, SameTokens
from raydrd.methods.wordmaps import WordMaps
from raydrd.spine.progress import say
from raydrd.spine.store import Artifact
from raydrd.stages.adopt import late_of, layout_of
from raydrd.stages.assemble import assemble
from raydrd.stages.load import sample_dev, table
from raydrd.stages.train import imitate, train
from raydrd.training.plan import TrainConfig


def dev_metrics(lab: Lab, student: Artifact, label: str) -> dict[str, float] | None:
    """Dev metrics of a student, as it would ship, on the sampled dev collection; None where there are no dev queries."""
    if not table(lab.dev_data, "queries/dev").rows:
        return None
    run = as_shipped(lab, student, lab.dev_data, "queries/dev", k=lab.cfg.evaluation.depth, label=label)
    return dict(judge(lab, run, lab.dev_data, "queries/dev", f"dev ({label})").metrics["means"])


def learn(lab: Lab, before: Artifact, label: str, make: Callable[[], Artifact]) -> Artifact:
    """One training stage with dev metrics before and after it, noted for the report.

    With `keep: best` a stage after which the first metric is lower is dropped: the student of before it goes on.
    `lab.on_segment` is told of both looks at dev (`label`, `dev` of what goes on, `steps` of this stage, `dropped`); what
    it raises ends the run, where nothing is half done.
    """
    if lab.segments:
        first = lab.segments[-1]["dev_kept"]
    else:
        first = dev_metrics(lab, before, "before")
        _tell(lab, {"label": "before", "dev": first, "steps": 0, "dropped": False})
    after = make()
    found = dev_metrics(lab, after, label)
    main, was = next(iter(first.items())) if first else ("", 0.0)
    now = next(iter(found.values())) if found else was
    dropped = lab.cfg.keep == "best" and now < was
    if dropped:
        say(f"{label}: dev {main} fell from {was:.4f} to {now:.4f}: dropped (keep: best)")
    lab.segments.append(
        {
            "label": label,
            "model": after,
            "steps": int(after.metrics["rows"]),
            "dev_before": first,
            "dev_after": found,
            "dev_kept": first if dropped else found,
            "dropped": dropped,
        }
    )
    lab.student = before if dropped else after
    _tell(lab, {"label": label, "dev": lab.segments[-1]["dev_kept"], "steps": lab.segments[-1]["steps"], "dropped": dropped})
    return lab.student


def _tell(lab: Lab, event: dict[str, Any]) -> None:
    if lab.on_segment is not None:
        lab.on_segment(event)


def prepares(label: str) -> bool:
    """Whether a training stage of this label comes before the method: it recovers a cut student, or warms it up."""
    return label == "recover" or label.startswith("warm-up ")


def distil(
    lab: Lab,
    student: Artifact,
    label: str,
    lists: Artifact,
    objective: Losses,
    config: TrainConfig,
    *,
    dark: Artifact | None = None,
    teacher: Artifact | None = None,
    words: WordMaps | None = None,
    word_teacher: Artifact | None = None,
) -> Artifact:
    """The student after learning `objective` on `lists`, or as it was where the dev gate drops the stage.

    dark: the collection of written passages that the lists name beside the corpus. teacher: a bi-encoder whose vectors
    the objective compares whole batches with. words: MD2PR's word level with its cross-encoder.

    Raises:
        InputError: there is no list.
    """
    if not lab.dry and not lists.metrics["rows"]:
        raise InputError(f"{label}: its list rule drops every train query; loosen it, or leave this step out")
    passages: Artifact | list[Artifact] = tokens(lab.store, student, lab.data, "corpus")
    if dark is not None:
        passages = [tokens(lab.store, student, lab.data, "corpus"), tokens(lab.store, student, dark, "corpus")]
    more: dict[str, Any] = {}
    if teacher is not None:
        more["teacher_vectors"] = {
            "query": vectors(lab.store, teacher, lab.train_data, "queries/train", lab.precision, "teacher"),
            "passage": vectors(lab.store, teacher, lab.data, "corpus", lab.precision, "teacher"),
        }
    if words is not None:
        more |= {"words": words, "word_teacher": word_teacher}
    more |= adapted(lab)
    return learn(
        lab,
        student,
        label,
        lambda: lab.store.run(
            train,
            f"train {label}",
            start=student,
            lists=lists,
            query_tokens=tokens(lab.store, student, lab.train_data, "queries/train"),
            passage_tokens=passages,
            objective=asked_of(lab, student, objective),
            config=config,
            precision=lab.precision,
            **more,
        ),
    )


def adapted(lab: Lab) -> dict[str, Any]:
    """What makes a training of the student one of adapters; named only then, so that other trainings are still found."""
    return {"lora": lab.cfg.student.lora} if lab.cfg.student.lora is not None else {}


def asked_of(lab: Lab, student: Artifact, objective: Losses) -> Losses | Nested | Both:
    """What is asked of the student's vectors: the objective, or where `student.dims` says so, the same of each width; of a
    hybrid's pooled vectors and of its tokens'."""
    dims, late = lab.cfg.student.dims, late_of(student)
    if late is not None and late.pooled:
        return Both(objective=objective, token_scale=lab.cfg.late.scale, distil=lab.cfg.late.distil)
    return Nested(objective=objective, dims=dims, normalize=layout_of(student).normalize) if dims else objective


def started(lab: Lab) -> Artifact:
    """The student that the method begins with: recovered where it was cut, then warmed up on labels if asked."""
    student = recovered(lab)
    for number, warm in enumerate(lab.cfg.warm_up, 1):
        label = f"warm-up {number}"
        found = mine(lab, student, label=label, positives=True, sources=warm.sources, depth=warm.depth)
        lists = lab.store.run(assemble, f"lists of {label}", scored=found, data=lab.train_data, rule=warm.lists)
        student = distil(lab, student, label, lists, Losses(terms=(Contrastive(),), score_scale=warm.score_scale), warm.train)
    return student


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
    late, more = late_of(lab.original), adapted(lab)
    if late is not None and late.pooled:
        both = (("query", data, "queries/train"), ("passage", texts, "corpus"))
        more["also"] = {role: token_vectors(store, lab.original, one, name, lab.precision, "uncut") for role, one, name in both}
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
            objective=SameVectors() if late is None else SameTokens(),
            config=recover.train,
            precision=lab.precision,
            **more,
        ),
    )
