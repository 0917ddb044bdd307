"""What only a GPU can show: bf16, fractions of a GPU for each actor, FAISS on it, NCCL, training with autocast."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from raydrd.benchmark.inputs import Texts
from raydrd.benchmark.sides import embedder
from raydrd.config import Resources
from raydrd.methods.objectives import Losses, Ordered
from raydrd.models.batching import SpecialTokens
from raydrd.models.layout import read_layout
from raydrd.spine.cluster import Cluster
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.spine.tables import LISTS
from raydrd.stages.embed import Embedder
from raydrd.stages.search import top_k
from raydrd.training.comm import Alone, Ranks
from raydrd.training.job import Job
from raydrd.training.loop import train_loop
from raydrd.training.plan import TrainConfig
from tests.worlds import toy_collection

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]

STEPS = 8


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def stores(toy: Path, tmp_path: Path) -> dict[str, Texts]:
    """Token stores of the toy world's queries and passages."""
    world, layout, found = toy_collection(tmp_path), read_layout(toy / "student"), {}
    for role, texts in (("query", world.queries), ("passage", world.passages)):
        found[role] = Texts.of(list(texts.values()), Folder.of(tmp_path / role))
        found[role].tokenizer(toy / "student", layout, role)()
    return found


def test_bf16_vectors_are_close_to_fp32(toy: Path, tmp_path: Path, stores: dict[str, Texts], cuda: torch.device) -> None:
    from sentence_transformers import SentenceTransformer

    made = stores["passage"]
    reference = SentenceTransformer(str(toy / "student"), device="cpu").encode(made.texts)
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        worker = embedder(toy / "student", made, out=Folder.of(tmp_path / precision), precision=precision)
        assert worker.device.type == cuda.type
        found[precision] = worker.encode(np.arange(len(made.texts)))
    np.testing.assert_allclose(found["fp32"], reference, atol=1e-4)
    cosines = (found["bf16"] * reference).sum(1)
    assert cosines.min() > 0.999
    assert not np.array_equal(found["bf16"], found["fp32"])  # else bf16 was not used


@pytest.mark.ray
def test_two_actors_share_one_gpu(toy: Path, tmp_path: Path, stores: dict[str, Texts], local_ray: Any) -> None:
    class Reporting:
        """Embeds as the stage does, and says what Ray gave it. Local, so that it travels by value."""

        def __init__(self, **arguments: Any) -> None:
            self.embedder = Embedder(**arguments)

        def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
            import ray

            time.sleep(1.0)  # so that both actors get shards
            self.embedder(shard)
            share = ray.get_runtime_context().get_assigned_resources().get("GPU")
            return {"pid": os.getpid(), "share": share, "device": self.embedder.device.type}

    cluster = Cluster(Resources(ray="local", num_workers=2, cpus_per_worker=1, gpus_per_worker=0.5))
    arguments: dict[str, Any] = {
        "model": Folder.of(toy / "student"),
        "role": "passage",
        "tokens": stores["passage"].tokens,
        "out": Folder.of(tmp_path / "vectors"),
        "precision": "bf16",
        "storage": "float16",
        "tokens_per_batch": None,
    }
    shards = [{"name": part_name(lo, lo + 10, "arrow"), "lo": lo, "hi": lo + 10, "rows": 10} for lo in range(0, 60, 10)]
    marks = Folder.of(tmp_path / "marks")
    results = cluster.map(Reporting, arguments, shards, label="embed", unit="texts", marks=marks)
    assert len({result["pid"] for result in results}) == 2
    assert {(result["share"], result["device"]) for result in results} == {(0.5, "cuda")}
    files = list((tmp_path / "vectors").iterdir())
    assert Parts.of(Folder.of(tmp_path / "vectors"), [file.name for file in files]).rows == 60


def test_top_k_on_the_gpu_is_the_cpus_also_among_ties(cuda: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 40, (50, 3000), generator=generator).float()  # some 75 equal scores at every level
    values, columns = top_k(scores, 100)
    values_gpu, columns_gpu = top_k(scores.to(cuda), 100)
    assert torch.equal(values_gpu.cpu(), values)
    assert torch.equal(columns_gpu.cpu(), columns)


def test_faiss_on_the_gpu_finds_what_exact_search_finds(cuda: torch.device) -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        pytest.skip("this build of FAISS has no GPU part")
    rng = np.random.default_rng(0)
    # Small whole numbers: sums are exact in any order, so scores must be equal, not close.
    passages = rng.integers(-8, 9, (5000, 64)).astype(np.float32)
    queries = rng.integers(-8, 9, (40, 64)).astype(np.float32)
    index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), cuda.index, faiss.IndexFlatIP(64))
    index.add(passages)
    scores, rows = index.search(queries, 20)
    ours, our_rows = top_k(torch.from_numpy(queries).to(cuda) @ torch.from_numpy(passages).to(cuda).T, 20)
    np.testing.assert_array_equal(scores, ours.cpu().numpy())
    # FAISS leaves the order of equal scores open: each of its rows has the score it says, and no row comes twice.
    np.testing.assert_array_equal(np.einsum("qd,qkd->qk", queries, passages[rows]), scores)
    assert all(len(set(row)) == 20 for row in rows.tolist())
    for query in range(len(queries)):
        sure = scores[query] > scores[query, -1]
        assert set(rows[query][sure].tolist()) == set(our_rows[query].cpu().numpy()[sure].tolist())


# -- training -------------------------------------------------------------------------------------


@pytest.fixture
def nccl(tmp_path: Path, cuda: torch.device) -> Iterator[Ranks]:
    """One rank of NCCL, as a worker of Ray Train would have it."""
    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1, device_id=cuda)
    yield Ranks(cuda)
    dist.destroy_process_group()


def job(toy: Path, stores: dict[str, Texts], home: Path, precision: Precision) -> Job:
    """A short training over six lists of ten passages, labels and all fixed."""
    from raydrd.training.sources import ListExamples

    rng = np.random.default_rng(0)
    docs = [rng.choice(60, 10, replace=False).tolist() for _ in range(6)]
    labels = [[float(rank) for rank in range(10, 0, -1)] for _ in docs]
    lists, name = Folder.of(home / "lists"), part_name(0, 6, "parquet")
    lists.write_table(name, pa.table([list(range(6)), docs, labels, labels], schema=LISTS))
    config = TrainConfig(learning_rate=1e-3, train_batch_size=3, max_steps=STEPS, dropout=0.0)
    return Job(
        start=Folder.of(toy / "student"),
        examples=ListExamples(Parts.of(lists, [name]), {role: texts.tokens for role, texts in stores.items()}),
        objective=Losses(terms=(Ordered(in_batch="all"),), score_scale=20.0),
        config=config,
        precision=precision,
        scratch=Folder.of(home / "scratch"),
        out=Folder.of(home / "out"),
        per_device=None,
        tokens_per_batch=None,
        save_seconds=60.0,
    )


def losses(work: Job) -> list[float]:
    return [row[1] for row in work.out.read_json("curve.json")]


def weights(work: Job) -> torch.Tensor:
    from safetensors.torch import load_file

    found = load_file(work.out.local("model/model.safetensors"))
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_nccl_with_one_rank_gathers_sums_and_agrees(nccl: Ranks, cuda: torch.device) -> None:
    tensor = torch.arange(6.0, device=cuda).reshape(3, 2).requires_grad_()
    gathered = nccl.gather(tensor)
    (gathered**2).sum().backward()
    assert torch.equal(gathered, tensor)
    assert torch.equal(tensor.grad, 2 * tensor)  # type: ignore[arg-type]
    mask = torch.tensor([True, False], device=cuda)
    assert torch.equal(nccl.gather(mask), mask)
    assert nccl.sums({"a": 1.5, "b": 2.0}) == {"a": 1.5, "b": 2.0}
    assert nccl.agreed(7) == 7


def test_training_over_nccl_with_one_rank_is_training_alone(
    toy: Path, tmp_path: Path, stores: dict[str, Texts], nccl: Ranks, cuda: torch.device
) -> None:
    alone, ranked = (job(toy, stores, tmp_path / name, "fp32") for name in ("alone", "ranked"))
    train_loop(alone, Alone(), cuda)
    train_loop(ranked, nccl, cuda)
    np.testing.assert_allclose(losses(ranked), losses(alone), rtol=1e-4)
    torch.testing.assert_close(weights(ranked), weights(alone), atol=1e-4, rtol=1e-3)


def test_training_in_bf16_follows_fp32(toy: Path, tmp_path: Path, stores: dict[str, Texts], cuda: torch.device) -> None:
    full, half = job(toy, stores, tmp_path / "full", "fp32"), job(toy, stores, tmp_path / "half", "bf16")
    train_loop(full, Alone(), cuda)
    train_loop(half, Alone(), cuda)
    assert losses(half) != losses(full)  # else autocast was not used
    np.testing.assert_allclose(losses(half), losses(full), rtol=0.05)
    assert losses(half)[-1] < losses(half)[0]
    assert weights(half).dtype == torch.float32
    assert torch.isfinite(weights(half)).all()


def test_pooling_and_special_tokens_are_those_of_the_cpu(toy: Path, stores: dict[str, Texts], cuda: torch.device) -> None:
    from transformers import AutoTokenizer

    from raydrd.models.encoders import load_tower

    layout = read_layout(toy / "student")
    tower = load_tower(toy / "student", layout, "passage")
    special = SpecialTokens.of(AutoTokenizer.from_pretrained(toy / "student"))
    batch = special.model_inputs([special.single(np.arange(5, 5 + n, dtype=np.int32), 64) for n in (3, 9, 20)])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.inference_mode():
        for how in ("mean", "cls", "max", "lasttoken"):
            tower.layout = layout.model_copy(update={"pooling": how})
            expected = tower.cpu()(ids, mask)
            found = tower.to(cuda)(ids.to(cuda), mask.to(cuda))
            torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
