"""Runs killed at random moments must end as undisturbed ones: python jobs/chaos.py CONFIG [a.b=value ...] [--kills 20]"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# A submitted job sees the copy of this folder, whether or not raydrd is installed in the cluster's image.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydrd.chaos.main import main  # noqa: E402


def open_cluster(**head: Any) -> Any:
    """Several raylets on this machine, as Ray's own tests make them; the head alone at first."""
    from raydrd.spine.quiet import quiet_ray

    quiet_ray()
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")  # a busy machine starts three raylets slowly
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args=head)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], open_cluster))
