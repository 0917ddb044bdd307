"""Synthetic corpora of any size through the real stages: what memory and throughput do as they grow."""
