"""Configuration: frozen values, one YAML a run, dotted overrides, and errors that name the field.

YAML holds numbers, Python holds wiring. Everything is checked before any work starts.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from raydrd.errors import InputError


class Frozen(BaseModel):
    """A value: compared, hashed, printed and pickled by its fields; unknown fields are errors.

    `version` enters the identity of whatever is made from it: raise it when the meaning changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: ClassVar[int] = 1

    def identity(self) -> dict[str, Any]:
        """The fields that enter the identity: all, unless a class says otherwise."""
        return {name: getattr(self, name) for name in type(self).model_fields}


T = TypeVar("T", bound=Frozen)


def _train_workers(value: Any) -> int | tuple[int, int]:
    """A number of workers, or the fewest and the most."""
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value) and 1 <= value[0] <= value[1]:
        return (value[0], value[1])
    raise ValueError("write a number of workers, 0 for this process, or a range such as [1, 4]")


class Resources(Frozen):
    """How a run is carried out. Never part of an identity: other values here give the same artefacts."""

    ray: str = Field("auto", description="auto (RAY_ADDRESS, else local Ray), off (in this process), or an address")
    num_workers: int | None = Field(None, ge=1, description="actors for embedding and scoring; none: as many as fit")
    cpus_per_worker: int | None = Field(None, ge=1, description="cores and threads of one actor; none: up to 8")
    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs of one actor, may be a fraction; none: 1 if any")
    tokens_per_batch: int | None = Field(None, ge=64, description="padded tokens a forward pass; none: by device")
    rows_per_shard: int | None = Field(None, ge=1, description="texts an embedding shard; none: 16,384 with a GPU, else 2,048")
    pairs_per_shard: int | None = Field(None, ge=1, description="pairs a scoring shard; none: 65,536 with a GPU, else 4,096")
    train_workers: Annotated[int | tuple[int, int], BeforeValidator(_train_workers)] = Field(
        1, description="Ray Train workers; [fewest, most] goes on with what a shrinking cluster has; 0 trains in this process"
    )
    collective_timeout_s: int = Field(
        600, ge=1, description="seconds that training workers wait for one of them before they start again from a checkpoint"
    )
    per_device_train_batch_size: int | None = Field(None, ge=1, description="queries at once on one device")
    save_seconds: float = Field(60.0, ge=0, description="seconds between checkpoints of the training loop")
    shard_attempts: int = Field(3, ge=1, description="times a shard may kill its actor before the stage gives up")
    stall_seconds: float = Field(60.0, gt=0, description="seconds without progress before a line says what is waited for")

    @field_validator("ray", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare `off` as false

    def train_range(self) -> tuple[int, int]:
        """Fewest and most training workers."""
        workers = self.train_workers
        return (workers, workers) if isinstance(workers, int) else workers


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"cannot read {text!r} as a YAML value: {error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; with `extends: other.yaml` (beside it) on top of that file's fields.

    Fields of mappings are merged, anything else (lists too) is replaced; a mapping of another `kind` replaces the whole.

    Raises:
        InputError: no such file, not YAML, not a mapping, or files that extend one another in a circle; with file and line.
    """
    return _extended(Path(path), ())


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    values = _read(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: write the name of one YAML file, for example base.yaml")
    if path.resolve() in above:
        raise InputError(f"{path}: extends: it extends itself, by way of {base}")
    return _merged(_extended(path.parent / base, (*above, path.resolve())), values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        same = isinstance(value, dict) and isinstance(old, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        result[name] = _merged(old, value) if same else value  # type: ignore[arg-type]
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write the path of a config, for example configs/quickstart.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a config is a mapping of fields, this is {type(values).__name__}")
    return values


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`values` with every `a.b.c=value` set; list items by number (`curriculum.0.train.max_steps=10`).

    Raises:
        InputError: an assignment without `=`, or a path through something that has no fields.
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values, sort_keys=False))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise InputError(f"override {assignment!r}: write path.to.field=value, for example train.seed=7")
        *parents, last = path.split(".")
        here: Any = result
        for part in parents:
            here = _step(here, part, assignment)
        if isinstance(here, list):
            here[_index(here, last, assignment)] = _parse(text)
        elif isinstance(here, dict):
            here[last] = _parse(text)
        else:
            raise InputError(f"override {assignment!r}: {'.'.join(parents)} is a value, it has no field {last!r}")
    return result


def _index(items: list[Any], part: str, assignment: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise InputError(f"override {assignment!r}: {part!r} is not a number from 0 to {len(items) - 1}")
    return int(part)


def _step(here: Any, part: str, assignment: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, assignment)]
    if isinstance(here, dict):
        if here.get(part) is None:
            here[part] = {}
        return here[part]
    raise InputError(f"override {assignment!r}: there are no fields below {part!r}")


def validate(model: type[T], values: dict[str, Any], where: str) -> T:
    """The config as a value.

    Raises:
        InputError: one line a problem: where, the field's dotted path, what is wrong, the nearest known name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_explain(model, item, where) for item in error.errors())) from None


def _explain(model: type[Frozen], item: Any, where: str) -> str:
    unknown = item["type"] == "extra_forbidden"
    parts, owner = _walk(model, item["loc"][:-1] if unknown else item["loc"])
    path = ".".join([*parts, str(item["loc"][-1])] if unknown else parts)
    if unknown:
        known = list(getattr(owner, "model_fields", {}))
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(sorted(known))}"
        return f"{where}: {path}: unknown field; {hint}"
    if item["type"] == "missing":
        return f"{where}: {path}: this field is required; add it, or set {path}=VALUE"
    if not path:  # of the whole: to show it all would bury what is wrong with it
        return f"{where}: {item['msg'].removeprefix('Value error, ')}"
    return f"{where}: {path}: {item['msg'][0].lower()}{item['msg'][1:]} (got {item['input']!r})"


def _walk(model: Any, loc: tuple[Any, ...]) -> tuple[list[str], Any]:
    """The path as a config writes it, and the model at its end. Tags of union members are in `loc`, not in the path."""
    members = [model]
    parts = []
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        tagged = [m for m in members if field is None and part in (m.__name__, _kind(m))]
        if tagged:
            model = tagged[0]
            continue
        parts.append(str(part))
        if field is not None:
            members = _frozen_in(field.annotation)
            model = members[0] if members else None
    return parts, model


def _kind(model: Any) -> Any:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _frozen_in(annotation: Any) -> list[Any]:
    """The config models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in _frozen_in(inner)]
