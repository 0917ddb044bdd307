"""`raydrd sweep` as a job: ray job submit --working-dir . -- python jobs/sweep.py SWEEP.yaml [a.b=value ...] --out URI"""

from __future__ import annotations

import sys
from pathlib import Path

# A submitted job sees the copy of this folder, whether or not raydrd is installed in the cluster's image.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydrd.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
