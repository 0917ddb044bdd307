"""Tokens and vectors are those of plain tools, however the work was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.errors import StageError
from raydrd.spine.cluster import Cluster
from raydrd.spine.store import Store
from raydrd.stages.adopt import model_folder
from raydrd.stages.embed import embed
from tests.stage_inputs import embed_all, matrix_of, open_data, open_model, open_tokens, whole, whole_texts, with_resources
from tests.worlds import tiny_encoder


@pytest.mark.parametrize(
    "resources",
    [{}, {"rows_per_shard": 7}, {"tokens_per_batch": 64}, {"rows_per_shard": 13, "tokens_per_batch": 100}],
    ids=str,
)
def test_vectors_are_those_of_plain_sentence_transformers(store: Store, toy: Path, tmp_path: Path, resources: Any) -> None:
    from sentence_transformers import SentenceTransformer

    store = with_resources(store, tmp_path / "s", **resources)
    data = open_data(store, toy / "data")
    model = open_model(store, toy / "student", passage_prompt="the ", passage_max_len=9)
    made = embed_all(store, model, data, "corpus", "float32")
    plain = SentenceTransformer(str(model_folder(model).local_folder()), device="cpu")
    texts = whole_texts(data, "corpus")
    assert max(len(t.split()) for t in texts) > 9 - 3, "some texts must be cut"
    np.testing.assert_allclose(matrix_of(made), plain.encode_document(texts), atol=1e-5)
    assert made.metrics["rows"] == 60 and made.metrics["width"] == 32 and made.metrics["per_second"] > 0


def test_the_query_side_has_its_own_prompt_and_length(store: Store, toy: Path) -> None:
    from sentence_transformers import SentenceTransformer

    data = open_data(store, toy / "data")
    model = open_model(store, toy / "student", query_prompt="how many ", towers="separate", query_max_len=8)
    made = matrix_of(embed_all(store, model, data, "queries/test", "float32"))
    plain = SentenceTransformer(str(model_folder(model).local_folder()), device="cpu")
    np.testing.assert_allclose(made, plain.encode_query(whole_texts(data, "queries/test")), atol=1e-5)
    assert np.abs(made - plain.encode_document(whole_texts(data, "queries/test"))).max() > 1e-3


def test_half_precision_storage_costs_a_thousandth(store: Store, toy: Path) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    half, single = (matrix_of(embed_all(store, model, data, "corpus", s)) for s in ("float16", "float32"))
    assert 0 < np.abs(half - single).max() < 1e-3


def test_token_ids_are_the_tokenizers_without_special_ones(store: Store, toy: Path) -> None:
    from transformers import AutoTokenizer

    data, model = open_data(store, toy / "data"), open_model(store, toy / "student", passage_prompt="old ")
    found = whole(open_tokens(store, model, data, "corpus"))["ids"].to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    assert found == [tokenizer("old " + t, add_special_tokens=False)["input_ids"] for t in whole_texts(data, "corpus")]


def test_models_with_one_tokenizer_share_its_tokens_and_each_text_is_tokenised_once(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = [open_tokens(store, open_model(store, toy / name), data, "corpus").id for name in ("student", "deep")]
    assert made[0] == made[1]
    assert [r.name for r in store.journal].count("tokenize") == 1
    assert open_tokens(store, open_model(store, toy / "deep", passage_prompt="new "), data, "corpus").id != made[0]


def test_an_encoder_that_gives_nan_fails_its_stage(store: Store, toy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tiny_encoder(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("word_embeddings.weight"))
    weights[name][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    data, model = open_data(store, toy / "data"), open_model(store, broken)
    with pytest.raises(StageError, match="the encoder gave NaN or infinity"):
        embed_all(store, model, data, "corpus")


@pytest.mark.ray
def test_ray_and_this_process_write_the_same_files(
    ray_store: Store, store: Store, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    tokens = open_tokens(store, model, data, "corpus")
    cut = {"rows_per_shard": 16, "tokens_per_batch": 128}
    store.cluster = Cluster(store.cluster.resources.model_copy(update=cut))
    ray_store.cluster = Cluster(ray_store.cluster.resources.model_copy(update=cut))
    monkeypatch.setattr("raydrd.stages.embed.FEW_TEXTS", 0)
    here, there = (s.run(embed, model=model, role="passage", tokens=tokens, precision="fp32") for s in (store, ray_store))
    assert here.id == there.id and list(here.manifest["files"]) == list(there.manifest["files"])
    assert len(here.manifest["files"]) == 4
    np.testing.assert_allclose(matrix_of(here), matrix_of(there), atol=1e-3)  # float16's step; cores may differ
