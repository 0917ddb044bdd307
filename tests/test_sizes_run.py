"""Students of several widths through whole runs: learnt, cut, kept as bytes or bits, shipped, searched, refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.dry import plan
from raydrd.flow.serve import as_shipped, encoding_speed, size_of
from raydrd.measure import evaluate_model, search_run
from raydrd.report.table import final_table
from raydrd.session import read_config, run
from tests.pages import Page
from tests.recipes import METRIC, open_toy, refusal, settings, steps
from tests.reports import plain as keyed
from tests.worlds import World, toy_collection

DIMS = "student.dims=[32,16,8]"
INT8 = "vectors={dim: 8, type: int8}"


@pytest.fixture(scope="module")
def runs(toy_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The toy run in other sizes, from its own store; reports with their `folder` beside them."""
    home = tmp_path_factory.mktemp("sizes")
    changes = {
        "whole": ["evaluation.sizes=true"],
        "nested": [DIMS],
        "int8": [DIMS, INT8],
        "bits": [DIMS, "vectors={type: binary}", "evaluation.sizes=false"],
        "cut": ["vectors={dim: 16}"],
    }
    found = {}
    for name, own in changes.items():
        report = run(toy_run["config"], own, out=str(home / name), store=str(toy_run["store"]))
        found[name] = {**report, "folder": home / name}
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return toy_collection(tmp_path_factory.mktemp("world"))


def size(report: dict[str, Any], dim: int, type_: str = "float32") -> dict[str, Any]:
    return next(one for one in report["sizes"]["rows"] if (one["dim"], one["type"]) == (dim, type_))


# -- what is learnt ----------------------------------------------------------------------------------


def test_widths_that_are_trained_are_better_than_the_same_cut_afterwards(runs: dict[str, Any]) -> None:
    for dim in (16, 8):
        trained, cut = (size(runs[name], dim)["means"][METRIC] for name in ("nested", "whole"))
        assert trained > cut + 0.15, (dim, trained, cut)
    assert size(runs["nested"], 32)["means"][METRIC] > size(runs["whole"], 32)["means"][METRIC] - 0.05
    assert runs["nested"]["sizes"]["trained"] == [32, 16, 8] and runs["whole"]["sizes"]["trained"] == [32]
    assert "sizes" not in runs["cut"] and "sizes" not in runs["bits"]


def test_the_form_of_vectors_trains_nothing_again(runs: dict[str, Any], toy_run: dict[str, Any]) -> None:
    trained = {name: report["artifacts"]["student"] for name, report in runs.items()}
    assert trained["nested"] == trained["int8"] == trained["bits"]
    assert trained["whole"] == trained["cut"] == toy_run["artifacts"]["student"] != trained["nested"]
    ids = {stage["label"]: stage["id"] for stage in toy_run["stages"]}
    assert {s["label"]: s["id"] for s in runs["whole"]["stages"] if s["label"] != "sizes"} == ids


# -- what ships --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dim", "type_"), [("int8", 8, "int8"), ("bits", 32, "binary"), ("cut", 16, "float32")])
def test_the_student_is_measured_as_it_ships(runs: dict[str, Any], name: str, dim: int, type_: str) -> None:
    report, curve = runs[name], runs["nested" if name != "cut" else "whole"]
    wanted = size(curve, dim, type_)
    after = report["systems"]["student"]
    assert {metric: after[metric] for metric in wanted["means"]} == pytest.approx(wanted["means"], abs=1e-9)
    assert after[METRIC] < curve["systems"]["student"][METRIC] - 0.05, "the whole float32 vectors are better"
    assert report["systems"]["student_before"] == curve["systems"]["student_before"], "the start is measured as it came"
    about = report["index"]
    told = (about["dim"], about["of"], about["type"], about["bytes"])
    assert told == (dim, 32, type_, wanted["bytes"])
    assert after["description"].endswith(f", served as {dim} dimensions, {type_}")
    meta = json.loads((report["folder"] / "index" / "meta.json").read_text())
    assert meta["width"] == dim and meta["factory"] == {"int8": "SQ8", "binary": "Signs", "float32": "Flat"}[type_]
    if "sizes" in report:
        assert [one["ships"] for one in report["sizes"]["rows"]].count(True) == 1 and size(report, dim, type_)["ships"]


@pytest.mark.parametrize("name", ["int8", "bits", "cut"])
def test_a_search_with_the_run_folder_gives_the_runs_own_ranking(runs: dict[str, Any], name: str, world: World) -> None:
    folder, first = runs[name]["folder"], 0
    ranked: dict[str, list[tuple[str, float]]] = {}
    for line in (folder / "run.trec").read_text().splitlines():
        query, _, doc, _, score, _ = line.split()
        ranked.setdefault(query, []).append((doc, float(score)))
    for query, own in ranked.items():
        found = search_run(str(folder), world.queries[query], k=5)
        assert [one["score"] for one in found] == pytest.approx([score for _, score in own[:5]], abs=3e-3)
        first += found[0]["doc_id"] == own[0][0]
    assert len(ranked) == 12 and first >= 11


def test_dev_metrics_are_of_the_form_that_ships(runs: dict[str, Any]) -> None:
    nested, int8, bits = (
        [segment["dev_after"][METRIC] for segment in runs[name]["curve"]["segments"]] for name in ("nested", "int8", "bits")
    )
    assert len(nested) == 3 and nested != int8 != bits and nested[-1] > int8[-1]
    labels = [stage["label"] for stage in runs["int8"]["stages"]]
    assert "index (step 1: 5/5/10)" in labels and "cut dev queries (before)" in labels


def test_the_exported_folder_gives_cut_vectors_in_plain_sentence_transformers(runs: dict[str, Any], world: World) -> None:
    from sentence_transformers import SentenceTransformer

    plain, whole = (SentenceTransformer(str(runs[name]["folder"] / "model"), device="cpu") for name in ("int8", "nested"))
    texts = list(world.queries.values())[:6]
    cut, full = plain.encode_query(texts, normalize_embeddings=True), whole.encode_query(texts)
    assert (plain.truncate_dim, cut.shape, whole.truncate_dim, full.shape) == (8, (6, 8), None, (6, 32))
    np.testing.assert_allclose(cut, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True), atol=1e-5)
    assert runs["int8"]["provenance"]["export_difference"] < 1e-5
    card = (runs["int8"]["folder"] / "model" / "README.md").read_text()
    assert 'SentenceTransformer("model", truncate_dim=8)' in card and 'question"], normalize_embeddings=True)' in card
    assert "the first 16, 8 of its 32 dimensions are vectors too" in card and "int8 vectors for this model" in card
    plain_card = (runs["whole"]["folder"] / "model" / "README.md").read_text()
    assert "truncate_dim=" not in plain_card and "normalize_embeddings=" not in plain_card and "Matryoshka" not in plain_card


def test_an_export_whose_own_settings_are_not_read_is_not_published(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raydrd.stages.ship as module
    from raydrd.config import Resources
    from raydrd.errors import StageError
    from raydrd.spine.cluster import Cluster
    from raydrd.spine.storage import Folder
    from raydrd.spine.store import Store
    from tests.stage_inputs import open_data, open_model
    from tests.test_stages_ship import open_tokens

    store = Store(Folder.of(tmp_path), Cluster(Resources(ray="off", train_workers=0)))
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    tokens = {name: open_tokens(store, model, data, name) for name in ("queries/test", "corpus")}
    asked = {"query_tokens": tokens["queries/test"], "passage_tokens": tokens["corpus"]}
    assert store.run(module.verify_export, model=model, data=data, **asked, dim=12).metrics["difference"] < 1e-5
    monkeypatch.setattr(module, "truncated", lambda card, dim: json.dumps({**json.loads(card), "truncate_dim": 10}).encode())
    with pytest.raises(StageError, match="export: plain sentence-transformers gives 10 dimensions, not 20"):
        store.run(module.verify_export, model=model, data=data, **asked, dim=20)


def test_evaluate_reads_what_a_folder_cuts(runs: dict[str, Any], toy: Path, tmp_path: Path) -> None:
    whole, cut = (
        evaluate_model(str(runs[name]["folder"] / "model"), str(toy / "data"), "test", store=str(tmp_path / name), ray="off")
        for name in ("whole", "cut")
    )
    # Not the precision of the run on every machine.
    assert cut["metrics"][METRIC] == pytest.approx(runs["cut"]["systems"]["student"][METRIC], abs=0.05)
    assert whole["metrics"][METRIC] > cut["metrics"][METRIC] + 0.1


# -- what is told ------------------------------------------------------------------------------------


def test_the_terminal_and_the_page_show_the_sizes(runs: dict[str, Any]) -> None:
    report = runs["int8"]
    told = final_table(report).splitlines()
    assert "index SQ8 (int8), 8 of 32 dimensions, 8 bytes a passage, 0.0 MB: the results are its own" in told
    line = next(one for one in told if one.startswith("8 int8 *"))
    own, whole = size(report, 8, "int8"), size(report, 32)
    difference = own["means"][METRIC] - whole["means"][METRIC]
    assert line.split()[3:6] == ["8", f"{own['means'][METRIC]:.3f}", f"{difference:+.3f}"]
    assert own["change"][METRIC][0] == pytest.approx(difference) and own["change"][METRIC][2] < 0
    assert max(map(len, told)) <= 100
    page = Page((report["folder"] / "report.html").read_text())
    assert "Size of the vectors" in page.text and "trained at 32, 16, 8 dimensions" in page.text
    assert keyed(line.split()[5]) in keyed(page.text)
    assert "Size of the vectors" not in Page((runs["cut"]["folder"] / "report.html").read_text()).text
    said = "vectors are cut to 16 of 32 dimensions, a width that the student is not trained for; see student.dims"
    assert said in runs["cut"]["data"]["notes"] and said not in report["data"]["notes"]


def test_a_dry_run_and_a_plan_know_every_stage(runs: dict[str, Any], toy_run: dict[str, Any], tmp_path: Path) -> None:
    from raydrd.session import plan as forecast

    changes = [DIMS, INT8]
    real = [(stage["name"], stage["label"]) for stage in runs["int8"]["stages"] if stage["name"] != "tokenize"]
    dry = plan(read_config(toy_run["config"], changes))
    assert [(one.stage, one.label) for one in dry.stages if one.stage != "tokenize"] == real
    details = {one.label: one.detail for one in dry.stages}
    assert details["sizes"] == "32, 16, 8 dimensions as float32, int8 and binary" and details["index (after)"] == "SQ8"
    assert details["train step 2: 10/5/5"].endswith("; 1 ordered, each at 32, 16, 8 dimensions")
    assert any("student.dims" in line for line in dry.unchecked)
    _, found = forecast(toy_run["config"], changes, store=str(tmp_path / "store"), gpus=None, price=None, seconds=2.0)
    known = {one["id"]: (one["label"], one["rows"]) for one in found["stages"]}
    missing = {s["label"] for s in runs["int8"]["stages"] if known.get(s["id"]) != (s["label"], s["rows"])}
    assert missing <= {"verify export"} and not found["unmeasured"]


# -- for sweeps --------------------------------------------------------------------------------------


def test_the_size_and_the_speed_of_a_student(toy: Path, tmp_path: Path) -> None:
    values = settings(toy, "margin_mse", train=steps(3), vectors={"dim": 8, "type": "binary"})
    _, lab = open_toy(values, tmp_path / "store")
    told = {"layers": 2, "dim": 8, "type": "binary", "index": "Flat", "bytes_per_passage": 1.0}
    assert size_of(lab, lab.start) == told
    deep = open_toy({**values, "student": {"model": str(toy / "deep")}}, tmp_path / "store")[1].start
    speeds = encoding_speed(lab, [deep, lab.start])
    assert speeds[1] > speeds[0] > 0, "four layers take longer than two"
    assert encoding_speed(lab, [deep, lab.start]) == speeds, "timed once"
    assert [r.name for r in lab.store.journal].count("race") == 1


def test_a_student_as_it_comes_is_searched_as_ever(toy: Path, tmp_path: Path) -> None:
    from raydrd.flow.retrieve import retrieve

    _, lab = open_toy(settings(toy, "margin_mse", train=steps(3)), tmp_path / "store")
    asked: dict[str, Any] = {"k": 10, "label": "x"}
    same = [find(lab, lab.start, lab.data, "queries/test", **asked).id for find in (retrieve, as_shipped)]
    assert same[0] == same[1]


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["student.dims=[8,32]"], "student.dims: value error, write two or more falling numbers, the model's own width first"),
        (["student.dims=[32]"], "student.dims: value error, write two or more falling numbers"),
        (["student.dims=[64,16,8]"], "student.dims: the first is 64, and the student's vectors have 32 dimensions; "
                                     "write dims: [32, 16, 8]"),
        (["student.dims=[16,8]"], "write dims: [32, 16, 8]"),
        (["vectors.dim=48"], "vectors.dim: 48, and the student's vectors have 32 dimensions; write that or less"),
        (["vectors={dim: 12, type: binary}"], "vectors: binary keeps 8 dimensions in a byte, and 12 is not a multiple of 8"),
        (["vectors.type=int8", "index=HNSW8"], "vectors.type: int8 is an index of its own; write index: Flat, or with index: "
                                               "HNSW8 type: float32"),
        (["vectors.type=int4"], "vectors.type: input should be 'float32', 'int8' or 'binary'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_any_work(
    toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], line: str
) -> None:
    assert line in refusal(capsys, tmp_path, copy.deepcopy(toy_config), changes=tuple(changes))


def test_an_index_of_lists_over_cut_vectors_is_measured_against_them(toy_run: dict[str, Any], tmp_path: Path) -> None:
    changes = ["vectors.dim=16", "index=IVF4,Flat"]
    report = run(toy_run["config"], changes, out=str(tmp_path / "run"), store=str(toy_run["store"]))
    about = report["index"]
    assert (about["factory"], about["dim"], about["type"], about["bytes"]) == ("IVF4,Flat", 16, "float32", 64 + 8)
    assert 0 < about["recall@10"] < 1 and "index IVF4,Flat, 16 of 32 dimensions, 72 bytes a passage" in final_table(report)
