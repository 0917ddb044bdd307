"""What jobs/scale.py measures and reckons: the collection that it draws, the meter, the tables, the arithmetic on paper."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydrd.stages.tokenize as tokenize_module
from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.scale import corpus, paper, steps, table
from raydrd.scale.corpus import BLOCK, Shape, block, synthesize, words_of
from raydrd.scale.main import main, sizes_of
from raydrd.scale.meter import Meter, below, resident
from raydrd.scale.standins import ABOUT, VectorWriter, random_vectors
from raydrd.spine.parts import TokenReader
from raydrd.spine.scorebook import Book
from raydrd.spine.store import Artifact, Located, Store
from raydrd.stages import load
from raydrd.stages.shards import parts_of
from raydrd.stages.tokenize import tokenize
from tests.worlds import tiny_tokenizer

MB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(tuple(f"word{chr(97 + a)}{chr(97 + b)}" for a in range(20) for b in range(20))).save_pretrained(folder)
    return folder


def drawn(store: Store, tokenizer: Path, shape: Shape) -> Artifact:
    return store.run(synthesize, shape=shape, tokenizer=Located("these words", tokenizer))


def tables(made: Artifact) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    both = (load.table(made, name) for name in ("corpus", "queries/train"))
    passages, queries = (one.slice(0, one.rows).to_pylist() for one in both)
    return passages, queries


# -- the collection ---------------------------------------------------------------------------------


def test_lengths_are_those_of_ms_marco(tokenizer: Path) -> None:
    passages, queries = block(Shape(passages=BLOCK), words_of(tokenizer), 0, BLOCK)
    counts = np.array([len(text.split()) for text in passages["text"].to_pylist()])
    assert abs(counts.mean() - 56) < 0.5 and counts.min() >= 8 and counts.max() <= 300
    assert counts.max() > 200 and np.median(counts) < counts.mean() - 3  # a long tail to the right
    asked = np.array([len(text.split()) for text in queries["text"].to_pylist()])
    assert len(asked) == BLOCK // 10 and abs(asked.mean() - 6) < 0.25 and asked.min() >= 2


def test_words_follow_zipf_in_the_order_of_the_vocabulary(tokenizer: Path) -> None:
    words = words_of(tokenizer)
    passages, _ = block(Shape(passages=BLOCK), words, 0, BLOCK)
    seen = [word.rstrip(".") for text in passages["text"].to_pylist() for word in text.split()]
    rank = {}
    for at, word in enumerate(words):
        rank.setdefault(word, at)  # a joined word may be made twice
    counts = np.bincount([rank[word] for word in seen], minlength=len(words))
    # Mandelbrot: the first word (at 2.7) comes as often as 12.7 / 2.7 times the eleventh.
    assert counts[0] / counts[10] == pytest.approx(12.7 / 2.7, rel=0.1)
    assert counts[:10].sum() > counts[100:110].sum() > counts[1000:1010].sum() > 0


def test_every_query_is_cut_from_its_positive(store: Store, tokenizer: Path) -> None:
    passages, queries = tables(drawn(store, tokenizer, Shape(passages=1000, queries_per_passages=0.3)))
    assert len(passages) == 1000 and len(queries) == 300
    positives = [one["doc_rows"][0] for one in queries]
    assert positives == sorted(set(positives)) and all(one["grades"] == [1] for one in queries)
    for query in queries:
        said = {word.rstrip(".") for word in passages[query["doc_rows"][0]]["text"].split()}
        assert set(query["text"].split()) <= said
    assert len({one["query_id"] for one in queries}) == 300 and passages[7]["doc_id"] == "p7"


def test_a_larger_collection_begins_with_the_smaller_one(
    store: Store, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BLOCK", 100)
    small, few = tables(drawn(store, tokenizer, Shape(passages=250)))
    large, many = tables(made := drawn(store, tokenizer, Shape(passages=430)))
    assert large[:250] == small and many[:25] == few and (len(large), len(many)) == (430, 43)
    assert len(load.table(made, "corpus").parts) == 5  # part by part
    assert len({one["text"] for one in large}) == 430  # blocks differ from one another
    other, _ = tables(drawn(store, tokenizer, Shape(passages=250, seed=1)))
    assert all(a["text"] != b["text"] for a, b in zip(small, other, strict=True))


def test_random_vectors_lie_in_the_parts_that_embed_writes(store: Store) -> None:
    store.cluster.resources = Resources(ray="off", rows_per_shard=30)
    made = parts_of(store.run(random_vectors, rows=100, width=8, seed=3))
    assert [part.hi - part.lo for part in made.parts] == [30, 30, 30, 10]
    values = np.array(made.slice(0, 100)["vector"].to_pylist())
    assert values.shape == (100, 8) and abs(values.std() - 1) < 0.1


def test_tokens_do_not_depend_on_how_many_texts_a_call_holds(
    store: Store, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = drawn(store, tokenizer, Shape(passages=50))

    def tokens(which: str) -> Artifact:
        where = Located(which, (steps.Folder.of(tokenizer), ""))
        return store.run(tokenize, data=data, name="corpus", tokenizer=where)

    at_once = parts_of(tokens("at once"))
    monkeypatch.setattr(tokenize_module, "TEXTS_AT_ONCE", 7)
    by_seven = parts_of(tokens("by seven"))
    assert at_once.slice(0, 50).equals(by_seven.slice(0, 50)) and at_once.slice(0, 50)["ids"][49].as_py()
    reader = TokenReader(by_seven)
    reader.lengths(np.arange(50))
    # Copies of what is mapped would be heap that grows with the corpus.
    assert [array.flags.owndata for arrays in reader._open.values() for array in arrays] == [False, False]


# -- the meter --------------------------------------------------------------------------------------

HOG = """
import sys, time
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
print("ready", flush=True)
time.sleep(60)
"""


def test_the_meter_sees_what_a_process_below_this_one_holds() -> None:
    used = {"used": 5, "spilled": 7}
    hog = None
    try:
        with Meter(lambda: dict(used), seconds=0.05) as meter:
            meter.begin("before")
            hog = subprocess.Popen([sys.executable, "-c", HOG, str(200 * MB)], stdout=subprocess.PIPE)
            assert hog.stdout is not None and hog.stdout.readline() == b"ready\n"
            phase = meter.begin("hog")
            used["spilled"] = 27
            # Mapped, for what malloc frees in a process of many tests stays with it.
            with mmap.mmap(-1, 150 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
                for at in range(0, 150 * MB, 4096):
                    held[at] = 1
                time.sleep(0.3)
            meter.begin("after")
        assert hog.pid in below(os.getpid())
        seen = phase.others[hog.pid]
        assert 200 * MB <= seen.anonymous < 260 * MB and seen.mapped > MB
        rest = meter.phases[-1].driver.anonymous
        assert 140 * MB < phase.driver.anonymous - rest < 160 * MB
        assert phase.stored == 5 and phase.spilled == (7, 27)
        assert phase.workers() == {}  # no worker of Ray
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()
    assert resident(hog.pid) is None


# -- a size through the stages ----------------------------------------------------------------------


def plan_of(toy: Path, passages: int = 300) -> steps.Plan:
    shape = Shape(passages=passages, queries_per_passages=0.2)
    return steps.Plan(shape=shape, depth=10, width=8, tokenizer=str(toy / "student"), resources=Resources(ray="off"))


WORK = [
    "draw texts",
    "tokenize passages",
    "tokenize queries",
    "draw vectors",
    "draw query vectors",
    "search",
    "cut candidates",
    "score, nothing known",
    "look up score, half known",
    "score, half known",
    "assemble",
]


def test_a_size_is_measured_stage_by_stage(toy: Path, tmp_path: Path) -> None:
    found = steps.measure(plan_of(toy), store=tmp_path / "store", object_store=dict, seconds=0.05)
    lines = {line["name"]: line for line in found["lines"]}
    assert list(lines) == WORK
    rows = {name: line["rows"] for name, line in lines.items()}
    assert rows["draw texts"] == rows["tokenize passages"] == 300 and rows["assemble"] == found["queries"] == 60
    assert rows["search"] == 300 * 60 and rows["score, nothing known"] == 300 and rows["score, half known"] == 600
    for line in lines.values():
        assert line["rate"] == pytest.approx(line["rows"] / line["cpu"])
        assert line["seconds"] >= line["busy"] > 0
        assert line["driver"]["anonymous"] > 10 * MB
    assert lines["draw texts"]["files"] == 2 and lines["draw texts"]["bytes"] > 300 * 56
    book = found["book"]
    assert book["pairs"] == 600 and book["bytes"] > 600 * 20
    kept = Book(steps.Folder.of(tmp_path / "store") / "scores" / os.listdir(tmp_path / "store" / "scores")[0])
    assert kept.about() == ABOUT and kept.rows() == 600  # each pair once: half was taken
    json.dumps(found)
    with pytest.raises(InputError, match="not empty"):
        steps.measure(plan_of(toy), store=tmp_path / "store", object_store=dict)


@pytest.mark.ray
def test_small_inputs_too_go_to_workers(ray_store: Store) -> None:
    lines: list[dict[str, Any]] = []
    out = ray_store.root / "vectors"
    with Meter(lambda: {"used": 1}, seconds=0.1) as meter:
        steps.watch(ray_store.cluster, meter, lines)
        shards = [{"name": f"rows-{lo}", "lo": lo, "rows": 50 * (1 + lo // 50)} for lo in (0, 50)]
        arguments = {"width": 4, "rows_per_part": 50, "seed": 0, "out": out}
        ray_store.cluster.map(
            VectorWriter, arguments, shards, label="draw, 3 ranges", unit="rows", marks=ray_store.root / "marks", inline=True
        )
    assert len(out.files()) == 3
    (line,) = lines
    assert line["name"] == "draw, ranges" and line["shards"] == 2 and line["share"] == pytest.approx(2 / 3)
    assert line["cpu"] > 0 and line["busy"] < line["seconds"]
    steps.finish(line | {"rows": 150})
    workers = line["phase"].workers()
    assert workers and max(one.anonymous for one in workers.values()) > 20 * MB
    assert os.getpid() not in workers


# -- tables -----------------------------------------------------------------------------------------


def size(passages: int, heap: int, rate: float, driver: int = 100, spilled: int = 0) -> dict[str, Any]:
    worker = {"title": "ray::x", "anonymous": heap * 1e6, "mapped": 5e6, "shared": 0}
    line = {
        "name": "tokenize",
        "rows": 1000,
        "unit": "texts",
        "seconds": 2.0,
        "shards": 1,
        "share": 1.0,
        "busy": 1.0,
        "rate": rate,
        "driver": {"anonymous": driver * 1e6},
        "workers": [{**worker, "anonymous": 1e6}, worker],
        "stored": 1e6,
        "spilled": spilled,
        "bytes": 4000,
        "files": 3,
    }
    return {"passages": passages, "lines": [line], "book": {"pairs": 10, "bytes": 230, "files": 1}}


def test_what_is_not_flat_is_said() -> None:
    small = size(100, 200, 50)
    assert table.unflat([small, size(1000, 219, 46)]) == []
    assert table.unflat([small, size(1000, 221, 50)]) == ["tokenize: heap of the largest worker 200 -> 221 MB (1.10x)"]
    assert table.unflat([small, size(1000, 200, 44)]) == ["tokenize: 50 -> 44 texts/s (0.88x)"]
    assert table.unflat([small, size(1000, 200, 50, driver=150)]) == ["tokenize: heap of the driver 100 -> 150 MB (1.50x)"]
    full = size(1000, 300, 50)
    full["lines"][0] |= {"rows": 10_000, "shards": 4, "share": 0.25}
    assert table.unflat([small, full])[0].endswith("(1.50x); the largest shard had 1,000, then 2,500 texts of 10,000")
    spilled = table.unflat([small, size(1000, 200, 50, spilled=3_000_000)])
    assert spilled == ["tokenize: 3 MB of Ray's object store spilled to disk"]
    page = table.page([small, size(1000, 300, 44)], as_markdown=True)
    assert "| tokenize | texts | 50 | 44 | 0.88 | 2.0 | 2.0 | 4.0 | 4.0 | 3 | 3 |" in page
    assert "| tokenize | 100 | 100 | 1.00 | 200 | 300 | 1.50 | 5 | 5 | 1.0 | 1.0 | 0 | 0 |" in page
    assert "Not flat" in page and "Not flat" not in table.page([small, small | {"passages": 1000}], as_markdown=True)
    assert "Not flat" not in table.page([small], as_markdown=False)


# -- on paper ---------------------------------------------------------------------------------------


def measured() -> paper.Measured:
    names = dict.fromkeys(WORK, 1000.0)
    return paper.Measured(rate=names, size={**names, "score, half known": 10.0}, heap=names, book=25.0)


def test_the_arithmetic_on_paper_by_hand() -> None:
    gpu = paper.Gpu(passages_per_second=1000, pairs_per_second=100, products_per_second=1e9, read_bytes_per_second=1e12)
    world = paper.World(name="w", passages=1_000_000, queries=10_000, found=100, scored=50, width=100)
    found = {one.stage: one for one in paper.project(world, measured(), gpu)}
    assert found["load"].memory == 60e6 and found["load"].files == 51
    assert found["tokenize"].cpu_hours == pytest.approx(1_010_000 / 1000 / 3600) and found["tokenize"].files == 21
    assert found["embed"].bytes == 1_010_000 * 200 and found["embed"].gpu_hours == pytest.approx(1010 / 3600)
    assert found["search"].gpu_hours == pytest.approx(1e6 * 1e4 * 100 / 1e9 / 3600)
    assert found["score"].rows == 500_000 and found["score"].gpu_hours == pytest.approx(5000 / 3600)
    assert found["score"].bytes == 500_000 * 35 and found["score"].files == 3 * 8
    assert found["look up"].files == 1 and found["assemble"].files == 2
    slow = {one.stage: one for one in paper.project(world, measured(), gpu.model_copy(update={"read_bytes_per_second": 1.0}))}
    assert slow["search"].gpu_hours == pytest.approx(1_000_000 * 200 / 3600)  # read once, a byte a second


def test_a_billion_passages_read_the_vectors_many_times() -> None:
    search = {one.stage: one for one in paper.project(paper.BILLION, measured(), paper.Gpu())}["search"]
    assert "reads" in search.remark and search.gpu_hours > 1e7 * 1e9 * 384 / 5e12 / 3600
    again = paper.project(paper.BILLION.model_copy(update={"queries": 20_000_000}), measured(), paper.Gpu())
    assert {one.stage: one for one in again}["look up"].memory == pytest.approx(1000 + 20_000_000 * 100 / 64 * 150)


# -- the command ------------------------------------------------------------------------------------


def test_wrong_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert sizes_of("5,50") == [5, 50]
    for sizes in ("50,5", "0,5", "5,5", "many"):
        assert main(["--sizes", sizes, "--store", str(tmp_path)], dict) == 2
        assert capsys.readouterr().err.startswith(f"scale: --sizes {sizes}: ")
    assert main(["--sizes", "5"], dict) == 2 and "--store" in capsys.readouterr().err
    assert main(["--sizes", "5", "--depth", "1", "--store", str(tmp_path)], dict) == 2
    assert "depth" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    for name in ("none.json", "other.json"):
        assert main(["--paper", str(tmp_path / name)], dict) == 2 and "--out" in capsys.readouterr().err


def test_the_readers_own_rates_are_used(capsys: pytest.CaptureFixture[str], tmp_path: Path, toy: Path) -> None:
    result = steps.measure(plan_of(toy), store=tmp_path / "store", object_store=dict, seconds=0.1)
    (tmp_path / "made.json").write_text(json.dumps({"sizes": [result]}))
    command = ["--paper", str(tmp_path / "made.json"), "--markdown"]
    assert main(command, dict) == 0
    said = capsys.readouterr().out
    assert "MS MARCO" in said and "1 B passages" in said and "8,000/s" in said
    own = ["--passages", "3600000", "--queries", "36000", "--scored", "10", "--pairs-per-second", "100"]
    assert main([*command, *own], dict) == 0
    said = capsys.readouterr().out
    assert "MS MARCO" not in said and "| score | 360,000 pairs |" in said and "| 1.0 |" in said
