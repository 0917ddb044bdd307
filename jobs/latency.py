"""How long a query takes, run by run: python jobs/latency.py RUN [RUN ...] [--queries N] [-k K] [--out FILE.json]"""

from __future__ import annotations

import sys
from pathlib import Path

# A submitted job sees the copy of this folder, whether or not raydrd is installed in the cluster's image.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydrd.benchmark.latency import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
