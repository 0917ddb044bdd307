"""The two ways a run ends early: the user's input is wrong, or a stage could not finish."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user wrote is wrong: one line (or one a finding), what and where and what to write instead.

    Entry points print it without a traceback and exit with code 2.
    """


class StageError(RuntimeError):
    """A stage gave up: a shard failed again and again, or its output is missing. Exit code 1."""
