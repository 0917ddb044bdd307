"""raydrd: distil a strong reranker into a fast dense retriever, on a laptop or on a Ray cluster."""

__version__ = "0.1.0"
