"""Late-interaction students: what does not go together, sizes of samples, memory, the word level, ADAM's and MD2PR's runs."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import raydrd.flow.servelate as servelate
import raydrd.methods.residual as residual
import raydrd.stages.late.recall as recall
from raydrd.errors import InputError
from raydrd.flow.serve import as_shipped, size_of
from raydrd.latesetting import LateInteraction
from raydrd.methods.tokenwise import Both, SameTokens
from raydrd.methods.wordmaps import TeacherMaps, student_maps, word_loss
from raydrd.models.late import Reading, load_student, load_tokenizer, made_late, save_late
from raydrd.models.latelayout import family, read_late
from raydrd.models.layout import folder_digest
from raydrd.spine.parts import Parts, TokenReader, part_name
from raydrd.spine.ragged import RaggedReader, ragged_table
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from raydrd.spine.tables import TOKENS
from raydrd.stages.index import sample
from raydrd.stages.late.index import starts_of
from raydrd.stages.late.pack import PackedReader, learn_codec, load_codec, pack_tokens
from raydrd.stages.late.ship import LateVerifier
from raydrd.stages.shards import parts_of, tokens_of
from raydrd.training.words import Words, chosen
from tests.late_worlds import given, late_model
from tests.recipes import LISTS, METRIC, artifact_of, open_toy, refusal, run_recipe, settings, steps
from tests.test_late_index import world
from tests.test_late_run import KL
from tests.test_maxsim import _vectors
from tests.test_training_ranks import _free_port, _rank
from tests.training_jobs import CPU, METHODS, assert_same, gradients, make_job, method_job

QUERIES = ["wave tide", "how to sail", "judge"]
PASSAGES = ["the reef. salt, and gull!", "court verdict of the judge", "tide " * 30]
SHORT = {"query_max_len": 20, "passage_max_len": 40}


def of_kind(toy: Path, recipe: str, kind: str, **fields: Any) -> dict[str, Any]:
    values = settings(toy, recipe, **fields)
    values["student"] |= {"kind": kind, "dim": 16, **SHORT}
    return values


# -- what a folder becomes ------------------------------------------------------------------------


def test_a_hybrids_folder_becomes_a_late_interaction_one(tmp_path: Path) -> None:
    hybrid = late_model(tmp_path / "hybrid", pooled=True)
    assert read_late(hybrid)[1].pooled  # type: ignore[union-attr]
    assert made_late(hybrid, {}, seed=0)[0].late.pooled, "asked for nothing, it stays what it is"
    model, tokenizer = made_late(hybrid, {"pooled": False}, seed=0)
    save_late(model, model.layout, tmp_path / "late", tokenizer=tokenizer)
    assert family(tmp_path / "late") == "pylate" and not (tmp_path / "late" / "1_Pooling").exists()
    assert read_late(tmp_path / "late")[1] == read_late(hybrid)[1].model_copy(  # type: ignore[union-attr]
        update={"pooled": False, "dense": ("1_Dense",)}
    )
    for role, texts in (("query", QUERIES), ("passage", PASSAGES)):
        for ours, before in zip(given(tmp_path / "late", role, texts), given(hybrid, role, texts, " tokens"), strict=True):
            np.testing.assert_array_equal(ours, before)


def test_attention_to_expansion_is_refused_where_it_does_nothing_or_harm(tmp_path: Path) -> None:
    plain = late_model(tmp_path / "plain")
    with pytest.raises(InputError, match="student.attend_to_expansion: its queries are not filled up; write query_expansion"):
        made_late(plain, {"attend_to_expansion": True}, seed=0)
    attended = late_model(tmp_path / "attended", query_expansion=True, attend_to_expansion=True)
    assert not made_late(attended, {"query_expansion": False}, seed=0)[0].late.attend_to_expansion
    for wanted in ({}, {"attend_to_expansion": True}):
        with pytest.raises(InputError, match="mask tokens too.*write attend_to_expansion: false"):
            made_late(attended, {"pooled": True, **wanted}, seed=0)
    late = made_late(attended, {"pooled": True, "attend_to_expansion": False}, seed=0)[0].late
    assert late.pooled and late.query_expansion and not late.attend_to_expansion


def test_the_export_check_compares_pooled_vectors_of_filled_queries(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    if not hasattr(library, "MultiVectorEncoder"):
        pytest.skip("a sentence-transformers without MultiVectorEncoder")
    home = late_model(tmp_path / "hybrid", pooled=True, query_expansion=True)
    layout, _ = read_late(home)
    tokenizer = load_tokenizer(home, layout)
    texts, tokens = {}, {}
    for role, own in (("query", [*QUERIES, "reef " * 40]), ("passage", PASSAGES)):
        folder = Folder.of(tmp_path / role)
        ids = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in own]
        folder.write_arrow(part_name(0, len(own), "arrow"), pa.table([pa.array(ids, TOKENS.field(0).type)], schema=TOKENS))
        folder.write_table(part_name(0, len(own), "parquet"), pa.table({"text": own}))
        tokens[role], texts[role] = (Parts.of(folder, [part_name(0, len(own), end)]) for end in ("arrow", "parquet"))
    check = LateVerifier(
        model=Folder.of(home), queries=texts["query"], passages=texts["passage"], tokens=tokens, pooled=True
    )  # fmt: skip
    found = check({"sample": 32})
    assert found["checked"] == 4 + 3 + 3 + 3, "of the pooled queries all but the one that is cut"
    assert found["worst"] < 1e-5


def test_colberts_own_settings_are_part_of_a_folders_digest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    (tmp_path / "README.md").write_text("about")
    assert folder_digest(tmp_path) == before
    found = {before}
    for masked in (True, False):
        (tmp_path / "artifact.metadata").write_text(json.dumps({"mask_punctuation": masked}))
        found.add(folder_digest(tmp_path))
    assert len(found) == 3


# -- what grows with a collection -----------------------------------------------------------------


def test_compressed_vectors_are_read_where_they_lie(store: Store) -> None:
    _, p = world(store, size=300)
    packed = store.run(pack_tokens, vectors=p, codec=store.run(learn_codec, vectors=p))
    reader = PackedReader(parts_of(packed), load_codec(packed.folder))
    before = pa.total_allocated_bytes()
    held = reader._part(0)
    assert pa.total_allocated_bytes() - before < 5000 < held[2].nbytes / 5, "a copy of the file's lists"
    lengths = RaggedReader(parts_of(p)).lengths(np.arange(900))
    for one in (p, packed):
        np.testing.assert_array_equal(starts_of(parts_of(one)), np.concatenate([[0], np.cumsum(lengths)]))


def test_nearest_centroids_are_found_in_blocks_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    centroids, vectors = (draw.standard_normal((n, 4)).astype(np.float32) for n in (4096, 3000))
    whole = residual.nearest(centroids, vectors)
    monkeypatch.setattr(residual, "MOST_PRODUCTS", 1 << 16)
    tracemalloc.start()
    found = residual.nearest(centroids, vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20, "16 rows of 4096 products at once: 262 kB"
    np.testing.assert_allclose((vectors * centroids[found]).sum(1), (vectors * centroids[whole]).sum(1), atol=1e-5)


@pytest.mark.parametrize("most", [50, 3000, 10**6])
def test_the_sample_that_an_index_learns_from_stays_the_same(store: Store, most: int) -> None:
    _, p = world(store)
    vectors = tokens_of(p)
    every = np.concatenate(RaggedReader(parts_of(p)).take(np.arange(900))).astype(np.float32)
    rows = np.arange(len(every))
    if len(every) > most:
        rows = np.sort(np.random.default_rng(0).choice(len(every), most, replace=False, shuffle=False))
    np.testing.assert_array_equal(sample(vectors, most), every[rows])


def test_slow_searches_are_timed_on_fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    monkeypatch.setattr(recall, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def ask(query: int, *, seconds: float) -> None:
        now[0] += seconds
        asked.append(query)

    queries = [(n,) for n in range(16)]
    assert recall.per_second(lambda query: ask(query, seconds=0.5), queries) == pytest.approx(2.0)
    assert asked == [0, *range(16)]
    asked.clear()
    assert recall.per_second(lambda query: ask(query, seconds=20.0), queries) == pytest.approx(0.05)
    assert asked == [0, 0, 1]


# -- how a sample is looked at, and what ships ----------------------------------------------------


def test_dev_is_looked_at_with_what_its_size_allows(toy: Path, tmp_path: Path) -> None:
    small = {"metrics": [METRIC], "dev_passages": 20, "dev_queries": 2}
    values = of_kind(toy, "mix", "hybrid", steps=KL, evaluation=small)
    _, lab = open_toy(values, tmp_path)

    def look(label: str, data: Any, **late: Any) -> None:
        lab.cfg = lab.cfg.model_copy(update={"late": LateInteraction(**late)})
        name = "queries/dev" if data is lab.dev_data else "queries/test"
        as_shipped(lab, lab.start, data, name, k=10, label=label)

    look("dev", lab.dev_data, type="2bit", centroids=100)
    tokens, whole = (
        int(servelate.token_vectors(lab.store, lab.start, one, "corpus", lab.precision, "x").metrics["tokens"])
        for one in (lab.dev_data, lab.data)
    )
    assert tokens < 300 < 500 < whole
    assert artifact_of(lab, "codec (dev)").metrics["centroids"] == tokens // 4
    assert lab.notes[-1] == (
        f"late.centroids: dev's sample has {tokens} token vectors, so it is looked at with {tokens // 4} centroids"
    )
    look("again", lab.dev_data, type="2bit", centroids=100)
    assert sum("late.centroids" in line for line in lab.notes) == 1
    look("after", lab.data, type="2bit", centroids=100)
    assert artifact_of(lab, "codec (after)").metrics["centroids"] == 100
    with pytest.raises(
        InputError, match=r"late.centroids: 900, and the collection has about \d+ token vectors; write a quarter"
    ):
        look("never", lab.dev_data, type="2bit", centroids=900)

    by_tokens = {"candidates": "tokens", "depth": 10, "near": 20}
    look("dev", lab.dev_data, index="IVF300,Flat", **by_tokens)
    assert artifact_of(lab, "token index (dev)").metrics["factory"] == "Flat"
    assert lab.notes[-1].endswith("too few for IVF300,Flat; it is looked at with Flat")
    look("after", lab.data, index="IVF300,Flat", **by_tokens)
    index = artifact_of(lab, "token index (after)")
    assert index.metrics["factory"] == "IVF300,Flat"
    # What a student takes counts all that ships: token vectors, their index, and a hybrid's one vector.
    vectors = servelate.bytes_of(servelate.served_tokens(lab, lab.start, lab.data, "after"))
    of_index = 1e6 * index.metrics["size_mb"] / 60
    assert of_index > 16 * 4 * whole / 60
    assert size_of(lab, lab.start)["bytes_per_passage"] == pytest.approx(vectors + of_index + 4 * 32)
    lab.cfg = lab.cfg.model_copy(update={"late": LateInteraction()})
    assert size_of(lab, lab.start)["bytes_per_passage"] == pytest.approx(vectors + 4 * 32)
    with pytest.raises(InputError, match=r"late.index: 'IVF5000,Flat' learns 5,000 lists .* collection has about \d+ token"):
        look("never", lab.dev_data, index="IVF5000,Flat", **by_tokens)


def test_a_warm_up_on_the_scale_of_cosines_is_noted(toy: Path, tmp_path: Path) -> None:
    warm = [{"train": steps(1), "score_scale": scale} for scale in (1, 20)]
    values = of_kind(toy, "mix", "late_interaction", steps=KL, warm_up=warm)
    _, lab = open_toy(values, tmp_path)
    found = [line for line in lab.notes if "score_scale" in line]
    assert found == ["warm_up.1.score_scale is 20, and MaxSim is a sum over a query's tokens: 1 is what ColBERT takes"]


# -- the word level -------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [{}, {"pooled": True, "markers": ("[Q] ", "")}], ids=["late", "hybrid"])
def test_the_word_level_reads_markers_and_matches_words(tmp_path: Path, wanted: dict[str, Any]) -> None:
    """Pair by pair, without padding: states of a text's own tokens, behind [CLS] and marker and before [SEP]."""
    late_model(tmp_path / "model", **wanted)
    job = method_job(tmp_path, "md2pr")
    assert job.words is not None
    model, (layout, late) = load_student(tmp_path / "model"), read_late(tmp_path / "model")
    assert late is not None
    reading = Reading.of(load_tokenizer(tmp_path / "model", layout), layout, late)
    readers = {role: TokenReader(parts) for role, parts in job.examples.tokens.items()}
    words = Words(
        job.words, model=model, special=reading.special, layout=layout, tokens=readers, precision="fp32", device=CPU,
        reading=reading,
    )  # fmt: skip
    batch = job.examples.open().batch(np.arange(6))
    teacher = TeacherMaps(job.words.model.local_folder(), layers=job.words.rule.layers, precision="fp32", device=CPU)
    total = count = 0.0
    with torch.inference_mode():
        loss, pairs = words.loss(batch)
        for q, n in chosen(batch, job.words.rule.negatives).tolist():
            rows = {"query": batch.rows["query"][q], "passage": batch.doc_rows_QN[q, n]}
            ids = {role: readers[role].take(np.array([int(row)]))[0] for role, row in rows.items()}
            states = {}
            for role, own in ids.items():
                marker = [reading.markers[role]] if reading.markers[role] is not None else []
                inputs = torch.tensor([[2, *marker, *own.tolist(), 3]])
                found = model.states(inputs, torch.ones_like(inputs))  # type: ignore[union-attr]
                states[role] = found[:, 1 + len(marker) : -1]
            maps = teacher([ids["query"]], [ids["passage"]])
            masks = [torch.ones(states[role].shape[:2], dtype=torch.bool) for role in ("query", "passage")]
            logits = student_maps(states["query"], states["passage"], words.projection)
            one, _ = word_loss(
                maps.query_to_passage_BQP, maps.passage_to_query_BPQ, logits, *masks,
                row_weights=job.words.rule.row_weights, directions=job.words.rule.directions,
            )  # fmt: skip
            total, count = total + float(one), count + 1
    assert pairs == count > 6
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_the_word_levels_gradient_is_the_same_in_pieces(tmp_path: Path) -> None:
    late_model(tmp_path / "model")
    job = method_job(tmp_path, "md2pr")
    whole, losses = gradients(job, progress=0.5)
    cut, cut_losses = gradients(replace(job, per_device=1), progress=0.5)
    assert losses["words"] == pytest.approx(cut_losses["words"], rel=1e-4) and losses["words"] > 1e-3
    torch.testing.assert_close(cut["projection"], whole["projection"], atol=1e-5, rtol=1e-3)


WORDS = {"weight": 0.5, "projection": 16}


@pytest.mark.parametrize("kind", ["late_interaction", "hybrid"])
def test_markers_do_not_make_words_another_tokenizers(toy: Path, tmp_path: Path, kind: str, capsys: Any) -> None:
    values = of_kind(toy, "md2pr", kind, lists=LISTS, words=WORDS, rounds=[steps(1)])
    _, lab = open_toy(values, tmp_path / "store")
    teacher, student = lab.teacher.metrics, lab.start.metrics
    assert student["tokenizer"] != teacher["tokenizer"], "the student's has markers"
    # So it is with a student's own folder, whose markers were added before.
    values["student"] |= {"model": str(Path(lab.start.folder.uri) / "model")}
    open_toy(values, tmp_path / "store")
    other = late_model(tmp_path / "other")  # knows punctuation, so its vocabulary is another one
    values["student"] |= {"model": str(other), "kind": "late_interaction"}
    assert "have different tokenizers" in refusal(capsys, tmp_path, values)


# -- two ranks ------------------------------------------------------------------------------------


def _original_again(home: Path) -> Any:
    """A job in which a hybrid learns another one's token vectors and pooled ones."""
    late_model(home / "whole", seed=1, pooled=True)
    late_model(home / "model", pooled=True)
    job = make_job(home, kind="texts", objective=SameTokens())
    also = []
    for role, parts in job.examples.tokens.items():
        found = _vectors(home / "whole", role, parts, " tokens")
        folder = Folder.of(home / f"whole-{role}")
        table = ragged_table(np.concatenate(found), np.array([len(one) for one in found]))
        folder.write_arrow(part_name(0, parts.rows, "arrow"), table)
        also.append((f"{role} tokens", role, Parts.of(folder, list(folder.files()))))
    return replace(job, examples=replace(job.examples, also=tuple(also)))


def test_two_workers_have_a_hybrids_gradients_of_one(tmp_path: Path) -> None:
    late_model(tmp_path / "both" / "model", pooled=True)
    objective = Both(objective=METHODS["pairdistill"], token_scale=2.0)
    both = replace(method_job(tmp_path / "both", "pairdistill"), objective=objective)
    jobs = {"both": both, "same": _original_again(tmp_path / "same")}
    once = {(name, n): replace(job, per_device=n) for name, job in jobs.items() for n in (None, 1)}
    (tmp_path / "jobs.pkl").write_bytes(pickle.dumps(([], once)))
    torch.multiprocessing.spawn(_rank, (str(tmp_path), _free_port()), nprocs=2, join=True)
    for name, job in jobs.items():
        alone, losses = gradients(job, progress=0.3)
        assert len(losses) == {"both": 7, "same": 2}[name] and max(g.abs().max() for g in alone.values()) > 1e-3
        for rank, per_device in itertools.product(range(2), (None, 1)):
            slopes = pickle.loads((tmp_path / f"rank-{rank}.pkl").read_bytes())["slopes"]
            found, told = slopes[name, per_device]
            assert_same(found, alone, 1e-4)
            assert told == pytest.approx(losses, rel=1e-4)


# -- recipes --------------------------------------------------------------------------------------


def assert_better_on_dev(lab: Any, *, by: float) -> None:
    assert lab.segments[-1]["dev_after"][METRIC] > lab.segments[0]["dev_before"][METRIC] + by, lab.segments


def test_written_passages_teach_it(toy: Path, tmp_path: Path) -> None:
    values = of_kind(
        toy, "adam", "late_interaction", lists=LISTS, dark={"built": 6, "reinforced": 3, "noisy": 3}, train=steps(20),
        loss={"score_scale": 2},
    )  # fmt: skip
    _, lab = run_recipe(values, tmp_path)
    assert_better_on_dev(lab, by=0.1)
    kept = next(fact["values"]["kept"] for fact in lab.facts if "kept" in fact["values"])
    assert kept > 24, "dark examples joined the lists"


def test_the_word_level_teaches_a_hybrid_over_two_rounds(toy: Path, tmp_path: Path) -> None:
    values = of_kind(
        toy, "md2pr", "hybrid", lists=LISTS, words=WORDS, rounds=[steps(10), steps(5)], loss={"score_scale": 20},
        late={"scale": 2.0},
    )  # fmt: skip
    student, lab = run_recipe(values, tmp_path)
    assert_better_on_dev(lab, by=0.1)
    assert student.metrics["late"]["pooled"]
