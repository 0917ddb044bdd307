"""The recipes: each paper once, none imports another."""

from __future__ import annotations

from types import ModuleType

from raydrd.recipes import cldrd

RECIPES: dict[str, ModuleType] = {"cldrd": cldrd}
