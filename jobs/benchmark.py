"""Speed side by side with sentence-transformers: python jobs/benchmark.py [--texts N] [--pairs N] [--out FILE.json] [...]"""

from __future__ import annotations

import sys
from pathlib import Path

# A submitted job sees the copy of this folder, whether or not raydrd is installed in the cluster's image.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydrd.benchmark.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
