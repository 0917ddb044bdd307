"""Sweeps: a recipe many times over one store, so that all that trials share is made once."""
