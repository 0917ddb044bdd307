"""What the whole suite shares: the toy world once a session, one local Ray, and no way to the network."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# Before anything heavy is imported: a hub id that slips into a test fails at once instead of going online.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads that wait for one another cost more than they give
# Actors and programs that tests start import `tests` and `raydrd` from here too.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])

from raydrd.config import Resources  # noqa: E402
from raydrd.spine.cluster import Cluster  # noqa: E402
from raydrd.spine.quiet import quiet_ray  # noqa: E402
from raydrd.spine.storage import Folder  # noqa: E402
from raydrd.spine.store import Store  # noqa: E402

# A student of two random layers, a perfect reranker, three steps from coarse to fine.
TOY_CONFIG: dict[str, Any] = {
    "recipe": "cldrd",
    "teacher": {"kind": "cross_encoder", "max_length": 64},
    "candidates": {"sources": ["student"], "depth": 60},
    "loss": {"score_scale": 20},
    "curriculum": [
        {
            "lists": {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10},
            "train": {"learning_rate": 3.0e-3, "train_batch_size": 8, "max_steps": 20},
        },
        {
            "lists": {"graded": 10, "hard": 5, "hard_until": 20, "rest": 5},
            "train": {"learning_rate": 1.0e-3, "train_batch_size": 8, "max_steps": 10},
        },
        {
            "lists": {"graded": 20, "hard": 0, "rest": 0},
            "train": {"learning_rate": 1.0e-3, "train_batch_size": 8, "max_steps": 10},
        },
    ],
    "evaluation": {"samples": 200},
    "precision": "fp32",
    "resources": {"ray": "off", "train_workers": 0},
}


@pytest.fixture(scope="session", autouse=True)
def _node_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RAYDRD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Training in this process on one thread, whatever the machine."""
    import raydrd.stages.train as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "own_threads", lambda: 1)
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store whose stages run in this process."""
    return Store(Folder.of(tmp_path / "store"), Cluster(Resources(ray="off", train_workers=0)))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder with `data/`, `student/` (2 random layers), `deep/` (4), `teacher/` (the oracle), `reranker/` (random)."""
    from tests.worlds import oracle_cross_encoder, tiny_cross_encoder, tiny_encoder, toy_collection

    home = tmp_path_factory.mktemp("toy")
    toy_collection(home / "data")
    tiny_encoder(home / "student")
    tiny_encoder(home / "deep", layers=4, seed=1)
    oracle_cross_encoder(home / "teacher")
    tiny_cross_encoder(home / "reranker")
    _sharpen(home / "reranker" / "model.safetensors")
    return home


def _sharpen(weights: Path) -> None:
    """Larger matrices: a freshly drawn model says nearly the same of every text, and any tolerance would pass."""
    from safetensors.torch import load_file, save_file

    tensors = {name: 8 * t if t.ndim > 1 else t for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def toy_config(toy: Path) -> dict[str, Any]:
    """The config of the toy run; copy it before changing it."""
    values = copy.deepcopy(TOY_CONFIG)
    values["data"] = {"path": str(toy / "data")}
    values["student"] = {"model": str(toy / "student")}
    values["teacher"]["model"] = str(toy / "teacher")
    return values


def write_config(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def toy_run(toy: Path, toy_config: dict[str, Any]) -> dict[str, Any]:
    """The toy run, once: its report, with `folder`, `store` and `config` paths beside it."""
    from raydrd.session import run

    config = write_config(toy / "toy.yaml", toy_config)
    report = run(config, [], out=str(toy / "run"), store=str(toy / "store"))
    return {**report, "folder": toy / "run", "store": toy / "store", "config": config}


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """One Ray for the whole session, started by the suite itself and never found by chance."""
    quiet_ray()
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=128 << 20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def ray_store(tmp_path: Path, local_ray: Any) -> Store:
    """An empty store whose stages run on Ray."""
    return Store(Folder.of(tmp_path / "ray-store"), Cluster(Resources(ray="local", num_workers=2, cpus_per_worker=1)))
