"""A config is checked to the last field before any work, and says what to write instead."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from raydrd.config import Frozen, Resources, override, read_yaml, validate
from raydrd.errors import InputError
from raydrd.session import read_config
from raydrd.setting import BiEncoderTeacher, CrossEncoderTeacher
from tests.conftest import write_config


class Inner(Frozen):
    max_steps: int = Field(3, ge=1)
    rate: float = 0.1
    flag: bool = False


class Outer(Frozen):
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    name: str


def test_a_value_is_compared_hashed_and_pickled_by_its_fields() -> None:
    a, b = Inner(max_steps=4), Inner(max_steps=4)
    assert a == b and hash(a) == hash(b) and pickle.loads(pickle.dumps(a)) == a and a != Inner()
    with pytest.raises(ValidationError):
        a.max_steps = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Inner(max_step=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("inner.max_steps=7", {"inner": {"max_steps": 7}}),
        ("inner.rate=1e-3", {"inner": {"rate": "1e-3"}}),  # YAML 1.1 reads this as text; the model makes it a number
        ("inner.flag=false", {"inner": {"flag": False}}),
        ("inner.flag=0", {"inner": {"flag": 0}}),
        ("maybe=null", {"maybe": None}),
        ("name=a=b", {"name": "a=b"}),
        ("items=[{max_steps: 1}, {max_steps: 2}]", {"items": [{"max_steps": 1}, {"max_steps": 2}]}),
        ("new.deep.er=1", {"new": {"deep": {"er": 1}}}),
    ],
)
def test_an_override_sets_one_field(assignment: str, expected: dict[str, Any]) -> None:
    assert override({}, [assignment]) == expected


def test_overrides_reach_into_lists_and_leave_their_input_alone() -> None:
    values = {"items": [{"max_steps": 1}, {"max_steps": 2}], "name": "x"}
    changed = override(values, ["items.1.max_steps=9", "items.0={max_steps: 5}", "name=y", "name=z"])
    assert changed == {"items": [{"max_steps": 5}, {"max_steps": 9}], "name": "z"}
    assert values == {"items": [{"max_steps": 1}, {"max_steps": 2}], "name": "x"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("inner.max_steps", "write path.to.field=value"),
        ("=3", "write path.to.field=value"),
        ("items.5.max_steps=1", "'5' is not a number from 0 to 1"),
        ("items.last=1", "'last' is not a number from 0 to 1"),
        ("name.deep=1", "name is a value, it has no field 'deep'"),
        ("name.deep.er=1", "there are no fields below 'deep'"),
        ("name=[1", "cannot read '[1' as a YAML value"),
    ],
)
def test_an_impossible_override_says_why(assignment: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        override({"items": [{}, {}], "name": "x"}, [assignment])
    assert message in str(caught.value)


def test_what_a_string_means_is_decided_by_the_field() -> None:
    cfg = validate(Outer, override({"name": "x"}, ["inner.rate=1e-3", "inner.flag=false", "inner.max_steps=2"]), "c.yaml")
    assert (cfg.inner.rate, cfg.inner.flag, cfg.inner.max_steps) == (1e-3, False, 2)
    assert validate(Outer, override({"name": "x"}, ["inner.flag=0"]), "c.yaml").inner.flag is False


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, ["c.yaml: name: this field is required; add it, or set name=VALUE"]),
        ({"name": "x", "iner": {}}, ["c.yaml: iner: unknown field; did you mean 'inner'?"]),
        ({"name": "x", "inner": {"max_step": 1}}, ["c.yaml: inner.max_step: unknown field; did you mean 'max_steps'?"]),
        ({"name": "x", "items": [{}, {"reat": 1}]}, ["c.yaml: items.1.reat: unknown field; did you mean 'rate'?"]),
        ({"name": "x", "maybe": {"flags": 1}}, ["c.yaml: maybe.flags: unknown field; did you mean 'flag'?"]),
        ({"name": "x", "zzz": 1}, ["c.yaml: zzz: unknown field; known fields: inner, items, maybe, name"]),
        (
            {"name": "x", "inner": {"max_steps": 0, "rate": "fast"}},
            ["c.yaml: inner.max_steps: input should be greater than or equal to 1 (got 0)", "c.yaml: inner.rate: "],
        ),
    ],
)
def test_each_mistake_has_its_line(values: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        validate(Outer, values, "c.yaml")
    found = str(caught.value).split("\n")
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(expected)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; write the path of a config"):
        read_yaml(tmp_path / "no.yaml")
    for text, message in [("a: [1\nb: 2\n", r"bad.yaml:\d+: not YAML"), ("- 1\n", "a config is a mapping"), ("", "NoneType")]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path / "bad.yaml")


def test_the_recipes_config(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    path = write_config(tmp_path / "mine.yaml", toy_config)
    cfg = read_config(path, ["curriculum.1.train.seed=7", "student.layers=[0,1]", "candidates.sources=[student,bm25]"])
    assert cfg.name.endswith("-mine") and read_config(path, ["data.path=s3://bucket/col?x=1"]).name == "col-mine"
    assert read_config(path, ["name=other"]).name == "other"
    assert cfg.curriculum[1].train.seed == 7 and cfg.curriculum[0].train.seed == 4680
    assert cfg.student.layers == (0, 1) and cfg.candidates.sources == ("student", "bm25")
    assert isinstance(cfg.teacher, CrossEncoderTeacher)
    assert isinstance(read_config(path, ["teacher={kind: bi_encoder, model: x}"]).teacher, BiEncoderTeacher)
    for assignment, message in [
        ("recipe=cl-drd", "recipe: 'cl-drd' is not one of cldrd"),
        ("curriculum.0.lists.hard_until=3", r"hard=5 passages come from ranks 6..3"),
        ("curriculum.0.train.max_steps=null", "write num_train_epochs or max_steps"),
        ("curriculum=[]", "curriculum: "),
        ("teacher.max_lenth=3", r"mine.yaml: teacher.max_lenth: unknown field; did you mean 'max_length'\?"),
        ("teacher.max_length=3", r"mine.yaml: teacher.max_length: input should be greater than or equal to 8"),
        ("teacher.kind=oracle", r"mine.yaml: teacher: "),
        ("curriculum.0.lists.gradedd=3", r"curriculum.0.lists.gradedd: unknown field; did you mean 'graded'\?"),
        ("candidates.sources=[student,google]", "candidates.sources.1"),
        ("student.layer=2", r"student.layer: unknown field; did you mean 'layers'\?"),
    ]:
        with pytest.raises(InputError, match=message):
            read_config(path, [assignment])


@pytest.mark.parametrize("field", ["num_workers", "cpus_per_worker", "rows_per_shard", "shard_attempts"])
def test_resources_are_bounded(field: str) -> None:
    with pytest.raises(InputError, match=f"c.yaml: {field}: "):
        validate(Resources, {field: 0}, "c.yaml")


def test_every_shipped_config_is_valid() -> None:
    shipped = sorted(path for path in Path("configs").rglob("*.yaml") if "recipe" in read_yaml(path))  # others are extended
    assert shipped
    for path in shipped:
        values = read_yaml(path)
        assignments = [] if "path" in values["data"] or values["data"]["source"] == "pydocs" else ["data.path=x"]
        assert read_config(str(path), assignments).recipe == values["recipe"]
