"""What a share of an expensive teacher's calls buys: python jobs/escalation.py CONFIG --shares 0,0.1,0.3,1.0 [--seeds N]"""

from __future__ import annotations

import sys
from pathlib import Path

# A submitted job sees the copy of this folder, whether or not raydrd is installed in the cluster's image.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydrd.benchmark.escalation import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
