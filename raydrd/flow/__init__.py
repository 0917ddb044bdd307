"""The parts of a run that every recipe shares: open, retrieve, teach, learn, look. Just below the recipes."""
