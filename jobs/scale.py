"""Memory and throughput as a corpus grows: python jobs/scale.py --sizes 100000,1000000 --out FILE.json --store DIR [...]"""

from __future__ import annotations

import sys
from pathlib import Path

# A submitted job sees the copy of this folder, whether or not raydrd is installed in the cluster's image.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raydrd.scale.main import main  # noqa: E402


def object_store() -> dict[str, int]:
    """Bytes in this Ray's object stores, and bytes they have spilled to disk since its start; zeros before it runs."""
    import ray
    from ray._private.internal_api import node_stats

    used = spilled = 0
    for node in ray.nodes() if ray.is_initialized() else []:
        if node["Alive"]:
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
            used, spilled = used + stats.object_store_bytes_used, spilled + stats.spilled_bytes_total
    return {"used": used, "spilled": spilled}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], object_store))
