"""The papers' ideas as values and pure functions: no files, no Ray."""
