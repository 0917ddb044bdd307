"""The stages of a student with one vector a token, each beside its namesake of single vectors one floor down."""
