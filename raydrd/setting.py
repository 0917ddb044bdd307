"""What every recipe's config holds: data, student, teacher, candidates, evaluation. One YAML is one run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydrd.config import Frozen, Resources
from raydrd.data.spec import Data
from raydrd.stages.adopt import Model, Student
from raydrd.training.plan import TrainConfig


class BiEncoderTeacher(Model):
    """A bigger bi-encoder: its vectors are stored once, its scores are inner products."""

    kind: Literal["bi_encoder"] = "bi_encoder"


class CrossEncoderTeacher(Frozen):
    """A reranker: any HF sequence classifier with one output, over [query, passage]."""

    kind: Literal["cross_encoder"] = "cross_encoder"
    model: str
    revision: str | None = None
    max_length: int = Field(512, ge=8, le=514, description="tokens of a pair, cut longest first")


class ReadyScores(Frozen):
    """No model: the scores in `data.scores` teach, and the passages they are for are the candidates."""

    kind: Literal["scores"] = "scores"

    @property
    def model(self) -> str:
        return "ready-made scores"


class Recover(Frozen):
    """Before the method: a cut student learns to give its uncut original's vectors again."""

    train: TrainConfig
    passages: int = Field(20_000, ge=1, description="most passages whose vectors are reproduced")


class MadeQueries(Frozen):
    """Unlabelled training queries made from the corpus: titles and leading sentences."""

    count: int = Field(0, ge=0)
    sentences: int = Field(2, ge=1, description="leading sentences a passage, each a query")
    seed: int = 0


class Candidates(Frozen):
    """Where training candidates come from. Several sources are interleaved rank by rank."""

    sources: tuple[Literal["student", "teacher", "bm25", "run"], ...] = ("student",)
    depth: int = Field(200, ge=2)


class Evaluation(Frozen):
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    depth: int = Field(100, ge=10, description="passages retrieved (or re-ranked by a cross-encoder) a query")
    dev_passages: int = Field(2000, ge=1, description="size of the sampled corpus to watch training on")
    dev_queries: int = Field(300, ge=1)
    samples: int = Field(10_000, ge=100, description="bootstrap and randomisation samples")
    seed: int = 0


class Setting(Frozen):
    """Fields that all recipes share."""

    recipe: str
    name: str | None = Field(None, description="of the run folder; none: the collection's and the config's names")
    data: Data
    student: Student
    teacher: BiEncoderTeacher | CrossEncoderTeacher | ReadyScores = Field(discriminator="kind")
    recover: Recover | None = None
    queries: MadeQueries = MadeQueries()
    candidates: Candidates = Candidates()
    evaluation: Evaluation = Evaluation()
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="bf16 where the hardware is faster with it")
    index: str = Field("Flat", description="FAISS factory string of the index to ship: Flat, HNSW32, IVF256,PQ48, ...")
    resources: Resources = Resources()
