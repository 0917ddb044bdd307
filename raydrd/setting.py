"""What every recipe's config holds: data, student, teacher, candidates, evaluation. One YAML is one run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raydrd.config import Frozen, Resources
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.latesetting import LateInteraction
from raydrd.methods.escalation import By
from raydrd.methods.lists import TopAndSampled
from raydrd.models.prompts import PROMPTS, ListPrompt, Prompt, named_or_read, prompt_kind, prompt_of
from raydrd.stages.adopt import Model, Student
from raydrd.stages.indexfile import FACTORIES, NumberType
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


_LISTED = 32  # tokens a passage, at least, of a prompt with a whole window in it


class PromptedTeacher(Frozen):
    """A language model, seq2seq or causal: by the logits of two answers (monoT5, duoT5, or an instruction-tuned one), or by
    the order that it writes of the passages of a window, which slides from the back of a list to its front (RankGPT).

    An order is no score: a list's passages get grades that fall from the first to the last, N - 1 to 0.
    """

    kind: Literal["prompted"] = "prompted"
    model: str
    revision: str | None = None
    prompt: Annotated[
        Annotated[str, Tag("str")] | Annotated[Prompt, Tag("Prompt")] | Annotated[ListPrompt, Tag("ListPrompt")],
        Discriminator(prompt_kind),
    ] = Field(
        description="monot5, duot5, yes_no, yes_no_query_first (a query's prompts begin alike, and that is read once), a_or_b, "
        "rank, .._chat, a .yaml file, or template, positive, negative",
    )
    max_length: int = Field(512, ge=8, description="tokens of a whole prompt; a text is never more than 512 of them")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="what runs it; vllm: on GPUs, by ray.data.llm, if raydrd[llm] is installed"
    )
    window: int = Field(20, ge=2, description="listwise: passages that are put in order at once")
    stride: int = Field(10, ge=1, description="listwise: passages that the next window begins nearer to the front")
    scale: Scale = Field(1.0, description=_SCALE)

    @field_validator("prompt", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return named_or_read(value)

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if not self.prompt_is("listwise"):
            return self
        if self.stride > self.window:
            raise ValueError(f"stride: {self.stride} steps over passages of a window of {self.window}; write that or less")
        if self.max_length < _LISTED * self.window:
            raise ValueError(
                f"max_length: {self.max_length} tokens are too few for {self.window} passages; write at least "
                f"{_LISTED * self.window}, better {200 * self.window}, or a smaller window"
            )
        if self.scale != 1.0:
            raise ValueError("scale: an order has no scale; remove it")
        if self.engine != "transformers":
            raise ValueError("engine: vllm scores pairs, and this prompt asks for an order; write engine: transformers")
        return self

    @property
    def pairwise(self) -> bool:
        """Whether the prompt compares two passages."""
        return prompt_of(self.prompt).pairwise

    @property
    def listwise(self) -> bool:
        """Whether the prompt asks for an order."""
        return prompt_of(self.prompt).listwise

    def prompt_is(self, kind: Literal["pairwise", "listwise"]) -> bool:
        """Whether it surely is; of a name that nobody knows nothing is sure yet."""
        known = not isinstance(self.prompt, str) or self.prompt in PROMPTS
        return known and bool(getattr(self, kind))


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


class Escalation(Frozen):
    """A cheap teacher scores everything; what is in doubt goes on to an expensive one, within a budget.

    The result is one score a candidate on the cheap teacher's scale: see `raydrd.methods.escalation`.
    """

    kind: Literal["escalate"] = "escalate"
    cheap: Member
    expensive: Member
    by: By = Field(
        "gap",
        description="what goes on: gap, what the cheap one scored nearly as high as its best, over all queries together; top, "
        "its first ones of each query; margin, neighbours in its order with little between them; disagreement, where it and "
        "the student differ",
    )
    share: float | None = Field(None, ge=0, le=1, description="of all candidates, so many go on; none: 0.3, or `pairs`")
    pairs: int | None = Field(None, ge=1, description="in place of a share: passages of each query that go on")
    scale: Scale = Field(1.0, description=_SCALE)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.share is not None and self.pairs is not None:
            raise ValueError("share and pairs are two budgets; write one of them")
        if self.cheap == self.expensive:
            raise ValueError("cheap and expensive are the same teacher; name another one, or write it alone")
        for name in ("cheap", "expensive"):
            one = getattr(self, name)
            if isinstance(one, PromptedTeacher) and one.prompt_is("listwise"):
                raise ValueError(f"{name}: an order of a whole list is no score of a pair; write a pointwise prompt")
        return self

    @property
    def spend(self) -> dict[str, Any]:
        """The budget: share and pairs, one of them None."""
        return {"share": 0.3 if self.share is None and self.pairs is None else self.share, "pairs": self.pairs}

    @property
    def members(self) -> tuple[Any, ...]:
        return (self.cheap, self.expensive)

    @property
    def model(self) -> str:
        return f"{self.cheap.model} > {self.expensive.model}"


AnyTeacher = Annotated[
    BiEncoderTeacher | CrossEncoderTeacher | PromptedTeacher | ReadyScores | Ensemble | Escalation, Field(discriminator="kind")
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


class Served(Frozen):
    """The form in which vectors ship; the student is measured by the index that holds them so."""

    dim: int | None = Field(None, ge=1, description="first numbers of a vector that are kept; none: all")
    type: NumberType = Field("float32", description="of a number: float32, int8 (a byte) or binary (its sign, a bit)")


class Evaluation(Frozen):
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    depth: int = Field(100, ge=10, description="passages retrieved (or re-ranked by a cross-encoder) a query")
    teacher_depth: int = Field(100, ge=2, description="passages a test query that a reranking teacher reads, at most depth")
    dev_passages: int = Field(2000, ge=1, description="size of the sampled corpus to watch training on")
    dev_queries: int = Field(300, ge=1)
    preflight_queries: int = Field(100, ge=2, description="dev queries that a teacher is tried on before it is paid for")
    preflight_depth: int = Field(30, ge=2, description="passages a query that it re-ranks there")
    sizes: bool | None = Field(None, description="measure every dim and type of the vectors; none: if student.dims is set")
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
    vectors: Served = Served()
    late: LateInteraction = LateInteraction()
    resources: Resources = Resources()

    @field_validator("preflight", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare `off` as false

    @property
    def factory(self) -> str:
        """FAISS factory string of the index that ships."""
        return self.index if self.vectors.type == "float32" else FACTORIES[self.vectors.type]

    @property
    def wants_sizes(self) -> bool:
        """Whether the report has the curve of sizes."""
        return self.student.dims is not None if self.evaluation.sizes is None else self.evaluation.sizes

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


def check_sizes(cfg: Setting, width: int) -> None:
    """Widths that only the student itself can tell to be impossible.

    Raises:
        InputError: `student.dims` does not begin with its width, or `vectors.dim` is more than that.
    """
    dims, dim = cfg.student.dims, cfg.vectors.dim
    if dims is not None and dims[0] != width:
        smaller = [str(one) for one in dims if one < width]
        raise InputError(
            f"student.dims: the first is {dims[0]}, and the student's vectors have {width} dimensions; "
            f"write dims: [{', '.join([str(width), *smaller])}]"
        )
    if dim is not None and dim > width:
        raise InputError(f"vectors.dim: {dim}, and the student's vectors have {width} dimensions; write that or less")


def word_reader(teacher: Any) -> CrossEncoderTeacher | None:
    """The cross-encoder whose attention gives word maps: the teacher, or the first one of several."""
    members = getattr(teacher, "members", (teacher,))
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
    # Of students with markers the tokenizer is another one, though it cuts words as its source's does.
    own, others = ({one["tokenizer"], *one.get("words", ())} for one in (student, about))
    if not own & others:
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
