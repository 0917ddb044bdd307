"""The toy worlds keep the promises that the rest of the suite relies on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.worlds import (
    oracle_cross_encoder,
    subject_overlap,
    tiny_cross_encoder,
    tiny_encoder,
    toy_collection,
)


def test_the_collection_is_deterministic_and_the_oracle_is_perfect(tmp_path: Path) -> None:
    world = toy_collection(tmp_path / "a")
    assert toy_collection(tmp_path / "b") == world
    names = ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(world.passages) == len(set(world.passages.values())) == 60
    assert {split: len(judged) for split, judged in world.qrels.items()} == {
        "train": 24,
        "dev": 12,
        "test": 12,
    }
    for judged in world.qrels.values():
        for query_id, relevant in judged.items():
            for doc_id, text in world.passages.items():
                score = subject_overlap(world.queries[query_id], text)
                assert score >= 4 if doc_id in relevant else score < 1
    first = json.loads((tmp_path / "a" / "corpus.jsonl").read_text().splitlines()[1])
    assert f"{first['title']} {first['text']}" == world.passages[first["_id"]]


def test_the_tiny_encoder_is_a_real_folder_with_room_to_learn(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    world = toy_collection(tmp_path / "data")
    state = torch.random.get_rng_state()
    folder = tiny_encoder(tmp_path / "encoder")
    assert torch.equal(torch.random.get_rng_state(), state)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    passages = model.encode(list(world.passages.values()))
    queries = model.encode(list(world.queries.values()))
    np.testing.assert_allclose(np.linalg.norm(passages, axis=1), 1.0, atol=1e-5)
    owners = np.array([world.subjects[doc_id] for doc_id in world.passages])
    asked = np.array([world.subjects[query_id] for query_id in world.queries])
    best = np.argsort(-queries @ passages.T, axis=1)[:, :5]
    assert 0.05 < (owners[best] == asked[:, None]).mean() < 0.6  # above chance (1/12), far from perfect
    again = SentenceTransformer(str(tiny_encoder(tmp_path / "again")), device="cpu", local_files_only=True)
    np.testing.assert_array_equal(again.encode(list(world.passages.values())), passages)
    assert tokens_unknown(folder, world.passages) == 0


def tokens_unknown(folder: Path, texts: dict[str, str]) -> int:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return sum(tokenizer(text)["input_ids"].count(tokenizer.unk_token_id) for text in texts.values())


def test_the_tiny_cross_encoder_gives_one_logit_a_pair(tmp_path: Path) -> None:
    folder = tiny_cross_encoder(tmp_path / "cross", seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["wave tide", "oven"], ["reef and salt", "tax"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**batch).logits.shape == (2, 1)


def test_the_oracle_cross_encoder_puts_every_relevant_passage_first(tmp_path: Path) -> None:
    world = toy_collection(tmp_path / "data")
    folder = oracle_cross_encoder(tmp_path / "oracle")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    passages = list(world.passages.values())
    for query_id, query in world.queries.items():
        batch = tokenizer([query] * len(passages), passages, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**batch).logits[:, 0]
        relevant = torch.tensor([world.subjects[d] == world.subjects[query_id] for d in world.passages])
        assert logits[relevant].min() > logits[~relevant].max() + 1.0
