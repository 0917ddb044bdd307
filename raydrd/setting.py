"""What every recipe's config holds: data, student, teacher, candidates, evaluation. One YAML is one run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydrd.config import Frozen, Resources
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.methods.lists import TopAndSampled
from raydrd.models.prompts import Prompt, prompt_of
from raydrd.stages.adopt import Model, Student
from raydrd.training.plan import TrainConfig


def _refuse_unscored(lists: TopAndSampled) -> None:
    """Lists made before any teacher has scored: ranks can only be the retriever's, positives only labelled."""
    if lists.ranking != "student" or lists.unlabelled:
        raise ValueError("lists: no teacher has scored yet; write ranking: student and unlabelled: false")


class TeacherTraining(Frozen):
    """A teacher trained here, by the student's own loop, on the labelled positive and mined passages of each query.

    Cross-encoders learn by listwise cross-entropy over 1 + N, bi-encoders by the same with the batch's passages as
    further negatives (scores times `score_scale`), pairwise rerankers by the positive against each of the others.
    """

    lists: TopAndSampled = TopAndSampled(negatives=15, pool=100, ranking="student", unlabelled=False)
    train: TrainConfig
    score_scale: float = Field(20.0, gt=0, description="of a bi-encoder's scores; 1 for unnormalised vectors")

    @model_validator(mode="after")
    def _from_labels(self) -> Self:
        _refuse_unscored(self.lists)
        return self


Scale = float | Literal["fitted"]
_SCALE = "multiplies its scores before any softmax: 20 for cosines; fitted: by its likelihood of the dev labels"


class BiEncoderTeacher(Model):
    """A bigger bi-encoder: its vectors are stored once, its scores are inner products."""

    kind: Literal["bi_encoder"] = "bi_encoder"
    layers: int | tuple[int, ...] | None = None
    towers: Literal["shared", "separate"] | None = None
    train: TeacherTraining | None = None
    scale: Scale = Field(1.0, description=_SCALE)


class CrossEncoderTeacher(Frozen):
    """A reranker over [query, passage]: any HF sequence classifier with one output, or any encoder, trained here."""

    kind: Literal["cross_encoder"] = "cross_encoder"
    model: str
    revision: str | None = None
    max_length: int = Field(512, ge=8, le=514, description="tokens of a pair (or of two passages), cut longest first")
    layers: int | None = Field(None, ge=1, description="keep so many, evenly spaced from first to last")
    train: TeacherTraining | None = None
    seed: int = Field(4680, description="of a new head's weights")
    scale: Scale = Field(1.0, description=_SCALE)


class PromptedTeacher(Frozen):
    """A language model, seq2seq or causal, by the logits of two answers: monoT5, duoT5, or an instruction-tuned one."""

    kind: Literal["prompted"] = "prompted"
    model: str
    revision: str | None = None
    prompt: str | Prompt = Field(description="monot5, duot5, yes_no, a_or_b, .._chat, or template, positive, negative")
    max_length: int = Field(512, ge=8, description="tokens of a whole prompt; a text is never more than 512 of them")
    scale: Scale = Field(1.0, description=_SCALE)

    @property
    def pairwise(self) -> bool:
        """Whether the prompt compares two passages."""
        return prompt_of(self.prompt).pairwise


class ReadyScores(Frozen):
    """No model: the scores in `data.scores` teach, and the passages they are for are the candidates."""

    kind: Literal["scores"] = "scores"
    scale: Scale = Field(1.0, description=_SCALE)

    @property
    def model(self) -> str:
        return "ready-made scores"


Member = Annotated[BiEncoderTeacher | CrossEncoderTeacher | PromptedTeacher, Field(discriminator="kind")]


class Ensemble(Frozen):
    """Several teachers as one: the mean of their scores, each standardised within a query."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Annotated[BiEncoderTeacher | CrossEncoderTeacher | PromptedTeacher, Field(discriminator="kind")], ...] = (
        Field(min_length=2)
    )
    scale: Scale = Field(1.0, description=_SCALE)

    @property
    def model(self) -> str:
        return " + ".join(member.model for member in self.members)


AnyTeacher = Annotated[
    BiEncoderTeacher | CrossEncoderTeacher | PromptedTeacher | ReadyScores | Ensemble, Field(discriminator="kind")
]
PairTeacher = Annotated[CrossEncoderTeacher | PromptedTeacher, Field(discriminator="kind")]


class WarmUp(Frozen):
    """Before the method: the student learns from labels alone, on negatives of its own or BM25's finding.

    InfoNCE of the labelled positive against its list's and the batch's passages.
    """

    sources: tuple[Literal["student", "teacher", "bm25", "run"], ...] = ("bm25",)
    depth: int = Field(200, ge=2)
    lists: TopAndSampled = TopAndSampled(negatives=1, pool=30, ranking="student", unlabelled=False)
    train: TrainConfig
    score_scale: float = Field(1.0, gt=0, description="20 for unit vectors")

    @model_validator(mode="after")
    def _from_labels(self) -> Self:
        _refuse_unscored(self.lists)
        return self


class Recover(Frozen):
    """Before the method: a cut student learns to give its uncut original's vectors again."""

    train: TrainConfig
    passages: int = Field(20_000, ge=1, description="most passages whose vectors are reproduced")


class MadeQueries(Frozen):
    """Which queries train: the labelled ones, and unlabelled ones made from the corpus (titles, leading sentences)."""

    labelled: int | None = Field(None, ge=1, description="most labelled train queries, drawn by seed; none: all")
    count: int = Field(0, ge=0, description="queries made from passages")
    sentences: int = Field(2, ge=1, description="leading sentences a passage, each a query")
    seed: int = 0


class Candidates(Frozen):
    """Where training candidates come from. Several sources are interleaved rank by rank."""

    sources: tuple[Literal["student", "teacher", "bm25", "run"], ...] = ("student",)
    depth: int = Field(200, ge=2, description="passages a query that are found; teachers trained here draw negatives from them")
    scored: int | None = Field(None, ge=2, description="of them, so many first ones are scored by the teacher; none: all")


class Evaluation(Frozen):
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    depth: int = Field(100, ge=10, description="passages retrieved (or re-ranked by a cross-encoder) a query")
    teacher_depth: int = Field(100, ge=2, description="passages a test query that a reranking teacher reads, at most depth")
    dev_passages: int = Field(2000, ge=1, description="size of the sampled corpus to watch training on")
    dev_queries: int = Field(300, ge=1)
    preflight_queries: int = Field(100, ge=2, description="dev queries that a teacher is tried on before it is paid for")
    preflight_depth: int = Field(30, ge=2, description="passages a query that it re-ranks there")
    samples: int = Field(10_000, ge=100, description="bootstrap and randomisation samples")
    seed: int = 0


class Setting(Frozen):
    """Fields that all recipes share."""

    recipe: str
    name: str | None = Field(None, description="of the run folder; none: the collection's and the config's names")
    data: Data
    student: Student
    teacher: AnyTeacher
    recover: Recover | None = None
    warm_up: tuple[WarmUp, ...] = ()
    queries: MadeQueries = MadeQueries()
    candidates: Candidates = Candidates()
    evaluation: Evaluation = Evaluation()
    preflight: Literal["stop", "warn", "off"] = Field("stop", description="what a teacher below the student does to the run")
    keep: Literal["last", "best"] = Field("last", description="best: a stage that loses on dev is dropped")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="bf16 where the hardware is faster with it")
    index: str = Field("Flat", description="FAISS factory string of the index to ship: Flat, HNSW32, IVF256,PQ48, ...")
    resources: Resources = Resources()

    @field_validator("preflight", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare `off` as false

    def teachers(self) -> tuple[Any, ...]:
        """Every teacher of this config, so that all are found before anything is paid for."""
        return (self.teacher,)

    def trainings(self) -> tuple[TrainConfig, ...]:
        """The student's training stages, in order."""
        raise NotImplementedError(f"recipe {self.recipe} does not say how its student is trained")

    def reads_scores(self) -> bool:
        """Whether the teacher's scores themselves teach; false where only their order does."""
        return True

    def scores_anew(self) -> str:
        """What of this config a teacher must score that ready-made scores cannot hold; empty: nothing."""
        return ""

    def pair_teachers(self) -> tuple[Any, ...]:
        """Teachers that compare two passages."""
        return ()

    def check_parts(self) -> None:
        """What the recipe's own fields tell to be impossible, before anything is read.

        Raises:
            InputError: one line: where, what does not go together, and what to write instead.
        """

    def check_models(self, student: dict[str, Any], teachers: dict[Any, dict[str, Any]]) -> None:
        """What only the models themselves can tell to be impossible; their metrics by config.

        Raises:
            InputError: one line: what does not go together, and what to write instead.
        """


def word_reader(teacher: Any) -> CrossEncoderTeacher | None:
    """The cross-encoder whose attention gives word maps: the teacher, or the first one of an ensemble."""
    members = teacher.members if isinstance(teacher, Ensemble) else (teacher,)
    return next((one for one in members if isinstance(one, CrossEncoderTeacher)), None)


def check_words(cfg: Setting, student: dict[str, Any], teachers: dict[Any, dict[str, Any]], *, layers: int) -> None:
    """The word level needs a cross-encoder that cuts words as the student does; metrics of models by config.

    layers: the teacher's last ones whose attention is read.

    Raises:
        InputError: there is none, it has another tokenizer or too few layers, or the student's texts do not fit into it.
    """
    reading = word_reader(cfg.teacher)
    if reading is None:
        raise InputError("words: the word level reads a cross_encoder's attention; name one as teacher, or words=null")
    about = teachers[reading]
    if about["tokenizer"] != student["tokenizer"]:
        raise InputError(
            f"words: teacher {reading.model} and student {cfg.student.model} have different tokenizers, so their words do "
            "not line up; choose a teacher with the student's tokenizer, or words=null"
        )
    if layers > (about.get("layers") or layers):
        raise InputError(f"words.layers: {layers} of teacher {reading.model}, which has {about['layers']}; write that or less")
    both = int(student["layout"]["query_max_len"]) + int(student["layout"]["passage_max_len"])
    limit = min(reading.max_length, about.get("max_length") or reading.max_length)
    if both > limit:
        raise InputError(
            f"words: queries and passages of the student have up to {both} tokens together, the teacher reads {limit}; "
            + ("raise teacher.max_length, or " if limit == reading.max_length else "")
            + "lower student.passage_max_len"
        )
