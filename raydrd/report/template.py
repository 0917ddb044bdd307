"""The pages of this folder: Jinja2, everything escaped."""

from __future__ import annotations

from importlib import resources

import jinja2


def template(name: str) -> jinja2.Template:
    """A page of this folder: everything is escaped, a name it does not know is an error; it may import other files here."""
    loader = jinja2.FunctionLoader(lambda file: resources.files("raydrd.report").joinpath(file).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)
