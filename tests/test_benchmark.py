"""The benchmark: its arithmetic on hand values, and all of it once on the toy world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydrd.benchmark.arithmetic import Cost, counting, peak
from raydrd.benchmark.inputs import Texts, pair_rows
from raydrd.benchmark.main import main
from raydrd.benchmark.pool import ACTORS, PLAIN, START, on_ray, shards_of
from raydrd.benchmark.sides import closeness
from raydrd.models.encoders import load_tower
from raydrd.models.layout import read_layout
from raydrd.rounds import Rounds, alternate
from raydrd.spine.storage import Folder


def test_operations_of_two_sequences() -> None:
    """Worked by hand: 10 parameters, 2 layers, width 3; lengths 1 and 4.

    2 * 10 * 5 tokens = 100, and 4 * 3 * 2 layers * (1 + 16) = 408.
    """
    assert Cost(parameters=10, layers=2, width=3).flops(np.array([1, 4])) == 508


def test_cost_counts_the_layers_and_nothing_else(toy: Path) -> None:
    """Width 32, inner width 64: query, key, value, output 4 * 32^2, and 2 * 32 * 64, in each of 2 layers."""
    tower = load_tower(toy / "student", read_layout(toy / "student"), "passage")
    assert Cost.of(tower.backbone) == Cost(parameters=2 * (4 * 32**2 + 2 * 32 * 64), layers=2, width=32)


def test_speedup_is_the_median_of_ratios_inside_rounds() -> None:
    """The second round ran on a machine half as fast: both sides doubled, their ratio did not."""
    rounds = Rounds({"a": [1.0, 2.0, 1.0], "b": [3.0, 6.0, 2.0], "c": [0.5, 0.5, 0.5]})
    assert rounds.speedup("a", "b") == 3.0
    assert rounds.median("b") == 3.0
    rounds.sum_of("a + c", ("a", "c"))
    assert rounds.seconds["a + c"] == [1.5, 2.5, 1.5]


def test_sides_run_in_turn_after_a_warm_up() -> None:
    order: list[str] = []
    found = alternate({name: lambda name=name: order.append(name) or name for name in "ab"}, 2)  # type: ignore[func-returns-value,misc]
    assert "".join(order) == "ababab"
    assert found.results == {"a": "a", "b": "b"}
    assert all(len(times) == 2 for times in found.seconds.values())


def test_padded_tokens_are_counted_in_the_first_run_only() -> None:
    model, counts = torch.nn.Embedding(5, 2), {}
    run = counting(model, lambda: model(torch.zeros(3, 4, dtype=torch.long)), counts, "side")
    run()
    run()
    assert counts == {"side": 12}


def test_peak_is_a_positive_rate() -> None:
    assert peak(torch.device("cpu"), "fp32", [(64, 64, 64)], seconds=0.01) > 1e6


def test_closeness_of_equal_and_of_turned_vectors() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    same = closeness(vectors, vectors)
    assert same["bf16 top-10 overlap"] == 1.0
    assert same["bf16 cosine, least"] == pytest.approx(1.0, abs=1e-6)
    turned = vectors.copy()
    turned[0] *= -1
    assert closeness(turned, vectors)["bf16 cosine, least"] == pytest.approx(-1.0, abs=1e-6)
    assert closeness(turned, vectors)["bf16 top-10 overlap"] < 1.0


def test_no_pair_is_drawn_twice() -> None:
    query_rows, passage_rows = pair_rows(3, 40, 25)
    assert len(query_rows) == len(passage_rows) == 25
    assert len(set(zip(query_rows.tolist(), passage_rows.tolist(), strict=True))) == 25


def test_the_warm_up_shard_is_not_counted_twice() -> None:
    warm, shards = shards_of(10, 4)
    assert (warm["lo"], warm["hi"]) == (0, 10)
    assert [(s["lo"], s["hi"]) for s in shards] == [(0, 4), (4, 8), (8, 10)]
    assert warm["name"] not in {s["name"] for s in shards}


def test_all_of_it_on_sixty_tiny_texts(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    model, data, threads = str(toy / "student"), str(toy / "data"), str(torch.get_num_threads())
    sizes = ["--texts", "60", "--pairs", "70", "--rounds", "2", "--threads", threads]
    parts = ["--only", "embedding", "--only", "scoring", "--quality"]
    assert main(["--model", model, "--data", data, *sizes, *parts, "--out", str(out)]) == 0
    page = capsys.readouterr().out
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["embedding"]["rows"] == 60
    assert found["scoring"]["rows"] == 70
    for part in ("embedding", "scoring"):
        assert found[part]["facts"]["largest difference in fp32"] < 1e-4
        sides = found[part]["sides"]
        assert sides["theirs fp32"]["speedup"] == 1.0
        assert all(0 <= sides[name]["padding"] < 1 for name in ("theirs fp32", "ours fp32", "ours bf16"))
        alone, together = sides["ours fp32"]["seconds"], sides["ours fp32 + tokenise"]["seconds"]
        assert all(a < b for a, b in zip(alone, together, strict=True))
    assert found["quality"]["queries"] == 12
    assert found["quality"]["fp32"]["R@100"] == 1.0  # 60 passages: all of them are among 100
    for text in ("### Embedding: 60 texts", "### Scoring: 70 pairs", "`CrossEncoder.predict` fp32, its defaults", "| bf16 |"):
        assert text in page


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "0"]) == 2
    assert "--rounds" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.ray
def test_actors_write_what_the_plain_loop_writes(toy: Path, tmp_path: Path, local_ray: Any) -> None:
    work = Folder.of(tmp_path)
    texts = Texts.of([f"wave {number % 10} tide" for number in range(30)], work / "texts")
    texts.tokenizer(toy / "student", read_layout(toy / "student"))()
    threads = torch.get_num_threads()
    try:
        found = on_ray(toy / "student", texts, work=work, precision="fp32", threads=1, rounds=1, size=10)
    finally:
        torch.set_num_threads(threads)
    assert found.results["equal"]
    assert all(len(found.seconds[name]) == 1 and found.seconds[name][0] > 0 for name in (PLAIN, ACTORS, START))
