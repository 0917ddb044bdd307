"""The recipes: each paper once, none imports another."""

from __future__ import annotations

from types import ModuleType

from raydrd.recipes import adam, cldrd, margin_mse, md2pr, mix, pairdistill, prod

RECIPES: dict[str, ModuleType] = {
    "cldrd": cldrd,
    "adam": adam,
    "prod": prod,
    "pairdistill": pairdistill,
    "md2pr": md2pr,
    "margin_mse": margin_mse,
    "mix": mix,
}
