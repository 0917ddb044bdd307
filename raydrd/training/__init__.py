"""The training loop and what it stands on; torch only, no Ray."""
