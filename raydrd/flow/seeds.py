"""The same config with other seeds of the student's trainings."""

from __future__ import annotations

from typing import Any

from raydrd.config import Frozen
from raydrd.setting import Setting, TeacherTraining
from raydrd.training.plan import TrainConfig


def reseeded(cfg: Any, offset: int) -> Any:
    """The config with `offset` added to the seed of each of the student's trainings.

    Those that all recipes share (`recover`, `warm_up`), the teachers' and every other draw stay as they are, so that
    nothing before the method's first training is made again.
    """
    if not offset:
        return cfg
    own = [name for name in type(cfg).model_fields if name not in Setting.model_fields]
    changed = cfg.model_copy(update={name: _reseeded(getattr(cfg, name), offset) for name in own})
    if [t.seed for t in changed.trainings()] != [t.seed + offset for t in cfg.trainings()]:
        raise TypeError(
            f"recipe {cfg.recipe}: trainings() names a training that is no field of its own; --seeds needs it there"
        )
    return changed


def _reseeded(value: Any, offset: int) -> Any:
    if isinstance(value, TrainConfig):
        return value.model_copy(update={"seed": value.seed + offset})
    if isinstance(value, tuple):
        return tuple(_reseeded(item, offset) for item in value)
    if not isinstance(value, Frozen) or isinstance(value, TeacherTraining):
        return value
    found = {name: _reseeded(getattr(value, name), offset) for name in type(value).model_fields}
    changed = {name: new for name, new in found.items() if new != getattr(value, name)}
    return value.model_copy(update=changed) if changed else value
