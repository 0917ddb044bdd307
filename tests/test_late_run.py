"""Late-interaction and hybrid students on the toy world: all recipes teach them, and what ships is what was measured."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydrd.measure import evaluate_model, search_run
from raydrd.models.late import load_late
from raydrd.models.latelayout import HEAD, read_late
from raydrd.session import plan, run
from raydrd.spine.ragged import RaggedReader
from raydrd.stages.shards import parts_of
from tests.conftest import TOY_CONFIG, write_config
from tests.late_worlds import slow_maxsim
from tests.recipes import (
    METRIC,
    artifact,
    assert_found_again,
    assert_learns,
    dry_run,
    fact,
    made,
    open_toy,
    refusal,
    rows,
    run_recipe,
    run_toy,
    settings,
    steps,
)
from tests.worlds import sharpen, toy_collection

LATE = {"kind": "late_interaction", "dim": 16}
KL = [{"lists": {"kind": "sampled", "negatives": 11, "pool": 40, "ranking": "teacher"}, "terms": [{"kind": "distil"}],
       "train": steps(30)}]  # fmt: skip


def late_settings(toy: Path, recipe: str, kind: str = "late_interaction", **fields: Any) -> dict[str, Any]:
    values = settings(toy, recipe, **fields)
    values["student"] |= {"kind": kind, "dim": 16}
    return values


@pytest.fixture(scope="module")
def cldrd(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    values = late_settings(toy, "cldrd", curriculum=copy.deepcopy(TOY_CONFIG["curriculum"]), loss={"score_scale": 4})
    return run_toy(tmp_path_factory.mktemp("late-cldrd"), values)


def test_a_curriculum_teaches_it(cldrd: dict[str, Any], tmp_path: Path) -> None:
    assert_learns(cldrd, by=0.25)
    assert_found_again(cldrd, tmp_path)
    told = [stage["name"] for stage in cldrd["stages"]]
    assert {"adopt_late", "embed_tokens", "search_tokens", "verify_late_export"} <= set(told)
    assert not {"adopt", "embed", "search", "build_index"} & set(told)
    assert cldrd["provenance"]["export_difference"] < 1e-4
    assert any("drawn by seed 4680" in note for note in cldrd["data"]["notes"])


def test_the_run_folder_is_pylates_and_its_index_answers(cldrd: dict[str, Any], toy: Path) -> None:
    home = cldrd["folder"]
    _, late = read_late(home / "model")
    assert late is not None and late.dim == 16
    assert "MultiVectorEncoder" in (home / "model" / "README.md").read_text()
    meta = json.loads((home / "index" / "meta.json").read_text())
    assert meta["kind"] == "late_interaction" and meta["similarity"] == "maxsim" and meta["exact"] and meta["dim"] == 16
    assert meta["bytes"] == pytest.approx(2 * 16 * meta["tokens_each"] + 4, rel=0.01) and meta["per_second"] > 0
    assert cldrd["index"]["recall@10"] == 1.0
    world = toy_collection(toy / "again")
    lines = [line.split() for line in (home / "run.trec").read_text().splitlines()]
    for query in ("q03", "q27"):
        found = search_run(str(home), world.queries[query], k=5)
        wanted = [(doc, float(score)) for q, _, doc, _, score, _ in lines if q == query][:5]
        assert [row["doc_id"] for row in found] == [doc for doc, _ in wanted]
        np.testing.assert_allclose([row["score"] for row in found], [score for _, score in wanted], atol=0.02)  # float16
    told = evaluate_model(str(home / "model"), str(toy / "data"), "test", store=str(home / "store"), ray="off")
    assert told["metrics"][METRIC] == pytest.approx(cldrd["systems"]["student"][METRIC], abs=0.02)  # perhaps in bf16


def test_other_resources_give_the_same_artefacts(cldrd: dict[str, Any], tmp_path: Path) -> None:
    changes = ["resources.rows_per_shard=7", "resources.tokens_per_batch=128", "resources.per_device_train_batch_size=2"]
    assert made(run(cldrd["config"], changes, out=str(tmp_path / "again"), store=str(cldrd["store"]))) == []
    # Made anew so, what was searched has the same scores but for float16's rounding.
    before = artifact(cldrd, "search test (before)")
    short = [{"lists": {"graded": 5, "hard": 5, "rest": 5}, "train": steps(1)}]
    again = run(cldrd["config"], [*changes, f"curriculum={json.dumps(short)}"], out=str(tmp_path / "other"),
                store=str(tmp_path / "store"))  # fmt: skip
    other = artifact({**again, "store": tmp_path / "store"}, "search test (before)")
    for one, two in zip(rows(before), rows(other), strict=True):
        a, b = (dict(zip(row["doc_rows"], row["scores"], strict=True)) for row in (one, two))
        assert a.keys() == b.keys() and all(abs(a[doc] - b[doc]) < 5e-3 for doc in a)


def test_plain_kl_teaches_it(toy: Path, tmp_path: Path) -> None:
    assert_learns(run_toy(tmp_path / "kl", late_settings(toy, "mix", steps=KL, score_scale=2)), by=0.2)


def test_a_cut_one_learns_its_originals_token_vectors_first(toy: Path, tmp_path: Path) -> None:
    source = sharpen(shutil.copytree(toy / "deep", tmp_path / "deep"), by=3)  # as drawn, its layers change next to nothing
    values = late_settings(toy, "mix", steps=[{**KL[0], "train": steps(1)}])
    values["student"] |= {"model": str(source), "layers": 2}
    values["recover"] = {"train": steps(40, 2.0e-3)}
    report = run_toy(tmp_path / "cut", values)
    recovered = artifact(report, "train recover")
    curve = [row[1] for row in recovered.folder.read_json("curve.json")]
    assert np.mean(curve[-3:]) < 0.7 * np.mean(curve[:3]) and recovered.metrics["late"]["dim"] == 16
    assert any("learnt again first" in note for note in report["data"]["notes"])
    # The projection is the same one in the cut student and in the uncut original.
    cut, whole = (load_late(Path(artifact(report, f"student {name}").folder.uri) / "model") for name in ("before", "uncut"))
    assert cut.dense[0][0].weight.equal(whole.dense[0][0].weight)


def test_pairs_teach_it_over_two_rounds(toy: Path, tmp_path: Path) -> None:
    pairwise = {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "train": {"train": steps(10)}}
    values = late_settings(
        toy, "pairdistill", candidates={"sources": ["student"], "depth": 25}, pairwise=pairwise,
        pairs={"top_k": 10, "window": 3, "pairs": 6}, lists={"size": 12}, rounds=[steps(20), steps(10)],
        loss={"score_scale": 2},
    )  # fmt: skip
    report = run_toy(tmp_path / "pairs", values, changes=["student.query_expansion=true", "student.query_max_len=12"])
    assert_learns(report, by=0.2)
    lengths = {len(row["tokens"]) for row in rows(artifact(report, "embed test queries (after)"))}
    assert lengths == {12}, "queries are filled up with mask tokens"


def test_an_anchor_is_the_frozen_students_own_maxsim(toy: Path, tmp_path: Path) -> None:
    values = late_settings(
        toy, "prod",
        progress=[{"train": steps(6), "lists": {"kind": "sampled", "negatives": 7, "pool": 30, "ranking": "student"}},
                  {"train": steps(6), "anchor": True,
                   "lists": {"kind": "sampled", "negatives": 7, "pool": 30, "ranking": "student"}}],
        loss={"score_scale": 1},
    )  # fmt: skip
    _, lab = run_recipe(values, tmp_path / "store")
    anchored = next(r for r in lab.store.journal if r.name == "anchor")
    lists = rows(lab.store.find("anchor", anchored.id))
    assert all(len(row["anchor_scores"]) == len(row["doc_rows"]) for row in lists)
    held = lab.store.find("anchor", anchored.id).manifest["inputs"]
    q, p = (RaggedReader(parts_of(lab.store.find(*held[name]["artifact"].split("/")))) for name in ("queries", "passages"))
    for row in lists[:3]:
        query = torch.from_numpy(q.take(np.array([row["query_row"]]))[0].astype(np.float32))
        for doc, score in list(zip(row["doc_rows"], row["anchor_scores"], strict=True))[:4]:
            passage = torch.from_numpy(p.take(np.array([doc]))[0].astype(np.float32))
            assert score == pytest.approx(float(slow_maxsim(query, passage)), abs=1e-4)


@pytest.fixture(scope="module")
def hybrid(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    values = late_settings(toy, "mix", "hybrid", steps=KL, score_scale=20, late={"scale": 2.0})
    values["student"] |= {"model": str(toy / "deep"), "layers": 2}
    values["recover"] = {"train": steps(10, 1.0e-3)}
    return run_toy(tmp_path_factory.mktemp("hybrid"), values)


def test_a_hybrid_learns_both_and_ships_one_folder(hybrid: dict[str, Any], toy: Path) -> None:
    assert_learns(hybrid, by=0.2)
    pooled = fact(hybrid, "the hybrid's pooled vectors alone", METRIC)
    assert pooled > hybrid["systems"]["student_before"][METRIC] + 0.1
    home = hybrid["folder"]
    assert (home / "model" / HEAD / "modules.json").exists() and (home / "index" / "index.faiss").exists()
    assert hybrid["provenance"]["export_difference"] < 1e-4
    world = toy_collection(toy / "again")
    by_tokens, by_pooled = (search_run(str(home), world.queries["q03"], k=60, by=by) for by in ("tokens", "pooled"))
    assert {row["doc_id"] for row in by_tokens} == {row["doc_id"] for row in by_pooled}
    assert by_pooled[0]["score"] <= 1.001 < by_tokens[0]["score"], "a cosine, and a sum of cosines"
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(home / "model"), device="cpu")
    vectors = plain.encode_query([world.queries["q03"]]) @ plain.encode_document(list(world.passages.values())).T
    assert list(world.passages)[int(vectors[0].argmax())] == by_pooled[0]["doc_id"]


@pytest.mark.parametrize("late", [
    {"type": "2bit", "centroids": 32}, {"candidates": "pooled", "depth": 20}, {"candidates": "tokens", "depth": 30, "near": 40},
], ids=["2bit", "pooled", "tokens"])  # fmt: skip
def test_what_ships_is_measured_against_exact(hybrid: dict[str, Any], tmp_path: Path, toy: Path, late: dict[str, Any]) -> None:
    changes = [f"late.{name}={value}" for name, value in late.items()]
    report = run(hybrid["config"], changes, out=str(tmp_path / "run"), store=str(hybrid["store"]))
    anew = {stage["name"] for stage in report["stages"] if not stage["reused"]}
    # Dev is looked at as it will ship, but nothing is embedded or trained again.
    assert not anew & {"embed_tokens", "train", "imitate", "adopt_late"}
    about = report["index"]
    assert not about["exact"] and 0.5 < about["recall@10"] <= 1.0
    if late.get("type") == "2bit":
        pooled = 4 * 32  # a hybrid's one vector a passage ships beside
        assert about["bytes"] - pooled < (hybrid["index"]["bytes"] - pooled) / 4 and about["recall@10"] > 0.6
    found = report["systems"]["student"][METRIC]
    assert found > hybrid["systems"]["student"][METRIC] - 0.1
    lines = [line.split() for line in (tmp_path / "run" / "run.trec").read_text().splitlines()]
    query = toy_collection(toy / "again").queries["q03"]
    wanted = [doc for q, _, doc, _, _, _ in lines if q == "q03"][:5]
    assert [row["doc_id"] for row in search_run(str(tmp_path / "run"), query, k=5)] == wanted


REFUSED = {
    "single vectors have no dim": ({"student.kind": "single_vector"}, "student: .*dim: a student with token vectors has it"),
    "no pooling": ({"student.pooling": "cls"}, "pooling: a late_interaction student has no such field"),
    "no widths": ({"student.dims": "[32, 16]"}, "dims: a late_interaction student has no such field"),
    "one tower": ({"student.towers": "separate"}, "towers: a late_interaction student has one tower"),
    "too wide": ({"student.dim": "64"}, "student.dim: 64, and the encoder's tokens have 32"),
    "no such marker": ({"index": "IVF2,Flat"}, "index: is for one vector a text"),
    "served": ({"vectors.type": "int8"}, "vectors: is for one vector a text"),
    "sizes": ({"evaluation.sizes": "true"}, "evaluation.sizes: is for one vector a text"),
    "pooled": ({"late.candidates": "pooled"}, "late.candidates: pooled needs a vector a text; write student.kind: hybrid"),
    "hybrid's": ({"late.distil": "2"}, "late.scale, late.distil: are a hybrid's"),
    "no index": ({"late.near": "5"}, "are of candidates: tokens"),
    "no codec": ({"late.centroids": "5"}, "late.centroids: are of type: 2bit"),
    "unknown index": ({"late.candidates": "tokens", "late.index": "IVFx"}, "index: FAISS cannot make 'IVFx'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import re

    changes, expected = REFUSED[name]
    values = late_settings(toy, "mix", steps=KL)
    line = refusal(capsys, tmp_path, values, changes=tuple(f"{field}={value}" for field, value in changes.items()))
    assert re.search(expected, line), line


def test_settings_of_token_vectors_need_token_vectors(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = settings(toy, "mix", steps=KL, late={"type": "2bit"})
    assert "late: is of students with token vectors" in refusal(capsys, tmp_path, values)


def test_the_plan_is_the_runs_own(toy: Path, cldrd: dict[str, Any]) -> None:
    from raydrd.session import dry_run as told

    text = told(cldrd["config"], [])
    assert "late interaction, 16 numbers a token" in text and "search_tokens" not in text.split("not checked")[0].split("\n")[0]
    cfg, _ = open_toy(late_settings(toy, "mix", "hybrid", steps=KL, late={"candidates": "tokens"}), cldrd["store"])
    planned, _ = dry_run(cfg)
    assert "train step 1" in planned


def test_a_forecast_knows_every_stage(cldrd: dict[str, Any], hybrid: dict[str, Any], tmp_path: Path) -> None:
    for report in (cldrd, hybrid):
        store = str(tmp_path / report["recipe"])
        _, found = plan(report["config"], [], store=store, gpus=None, price=None, seconds=2.0)
        assert not found["unmeasured"]
        assert {one["id"] for one in found["stages"]} == {one["id"] for one in report["stages"]}
        embedded = next(one for one in found["stages"] if one["name"] == "embed_tokens" and "passages" in one["label"])
        assert embedded["rows"] == 60 and embedded["seconds"] > 0 and embedded["disk"] > 60 * 32


def test_a_config_without_kinds_keeps_its_ids(toy: Path, toy_run: dict[str, Any], tmp_path: Path) -> None:
    values = copy.deepcopy(TOY_CONFIG) | {"data": {"path": str(toy / "data")}, "student": {"model": str(toy / "student")}}
    values["teacher"]["model"] = str(toy / "teacher")
    config = write_config(tmp_path / "c.yaml", values)
    again = run(config, ["student.kind=single_vector"], out=str(tmp_path / "r"), store=str(toy_run["store"]))
    assert made(again) == []
