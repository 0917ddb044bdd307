"""Stages: each a function that writes tables or a model folder under the `Work` it is given."""
