"""Speed side by side with sentence-transformers, in one run on one machine; `jobs/benchmark.py` starts it."""
