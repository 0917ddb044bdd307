"""Data in: collections of the field's formats become checked tables."""
