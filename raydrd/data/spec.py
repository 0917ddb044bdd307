"""What collection a run learns from: the config value `Data`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydrd.config import Frozen


class Data(Frozen):
    """A collection: passages, queries, judgements, and optionally a ready-made run or teacher scores."""

    source: Literal["beir", "msmarco", "parquet", "pydocs"] = Field("beir", description="how the files are laid out")
    path: str | None = Field(None, description="the collection's folder, local or s3://; pydocs has none")
    train_split: str | None = Field("train", description="judgements to train on; null: there are none")
    dev_split: str | None = Field("dev", description="judgements to choose by; carved from train when missing; null: none")
    test_split: str | None = Field("test", description="judgements to report on; null: there are none")
    titles: bool = Field(True, description="join title and text by one space; false leaves titles out")
    dev_fraction: float = Field(0.1, gt=0, lt=1, description="share of train that becomes dev when dev is missing")
    corpus: str | None = Field(None, description="msmarco: the collection file, in path or absolute")
    queries: str | tuple[str, ...] | None = Field(None, description="msmarco: the file or files of queries")
    qrels: dict[str, str] | None = Field(None, description="msmarco: split name -> file of judgements")
    run: str | None = Field(None, description="ready-made train candidates: TREC run, or qid pid rank; in path or absolute")
    scores: str | None = Field(None, description="teacher scores: Parquet query_id, doc_id, score; in path or absolute")
    packages: Literal["stdlib", "all"] | tuple[str, ...] = Field("stdlib", description="pydocs: whose docstrings")
    limit: int | None = Field(None, ge=10, description="pydocs: at most so many passages, chosen by a hash of their id")

    def __hash__(self) -> int:  # a dict field has no hash of its own
        return hash(self.model_dump_json())

    @field_validator("packages", mode="before")
    @classmethod
    def _packages(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("stdlib", "all"):
            raise ValueError(f"write stdlib, all, or a list of import names such as [{value or 'numpy'}]")
        if isinstance(value, list | tuple) and not value:
            raise ValueError("the list is empty; write stdlib, all, or a list of import names such as [numpy]")
        return value

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        wrong = [*self._fields_of_other_sources(), *self._splits()]
        if self.source == "pydocs" and self.path is not None:
            wrong.append("path is set, but source pydocs reads this Python's own files; remove path, or change source")
        if self.source != "pydocs" and not self.path:
            wrong.append(f"source {self.source} needs path; write its folder, for example path: data/scifact")
        if wrong:
            raise ValueError("; also: ".join(wrong))
        return self

    def _fields_of_other_sources(self) -> list[str]:
        owners = {
            "corpus": "msmarco",
            "queries": "msmarco",
            "qrels": "msmarco",
            "limit": "pydocs",
            "packages": "pydocs",
        }
        return [
            f"{name} belongs to source {owner}, this is source {self.source}; remove it, or change source"
            for name, owner in owners.items()
            if owner != self.source and getattr(self, name) != type(self).model_fields[name].default
        ]

    def _splits(self) -> list[str]:
        names = {key: getattr(self, key) for key in ("train_split", "dev_split", "test_split")}
        given = [name for name in names.values() if name is not None]
        wrong = []
        if len(set(given)) < len(given):
            wrong.append(f"two splits have the same name ({', '.join(given)}); write different ones, or null for none")
        if not given:
            wrong.append("all three splits are null; name at least one")
        if self.source == "pydocs":
            wrong += [
                f"{key} is {name!r}, but source pydocs makes train, dev and test; remove {key}"
                for key, name in names.items()
                if name not in (None, key.removesuffix("_split"))
            ]
        return wrong
