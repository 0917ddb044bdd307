"""Late-interaction folders: what they say is honoured, plain libraries read what is written, and give the same vectors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydrd.errors import InputError
from raydrd.methods.maxsim import maxsim
from raydrd.models.late import Reading, load_late, load_student, load_tokenizer, made_late, save_late
from raydrd.models.latelayout import HEAD, Late, family, read_late
from raydrd.models.layout import read_layout
from raydrd.spine.ragged import rectangle
from tests.late_worlds import MARKS, given, late_model
from tests.worlds import tiny_encoder

QUERIES = ["wave tide", "how to sail", "judge", "reef " * 40]
PASSAGES = ["the reef. salt, and gull!", "court verdict of the judge", "tide " * 90, ", . !"]
WANTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "expanded": {"query_expansion": True},
    "attended": {"query_expansion": True, "attend_to_expansion": True, "skip_punctuation": False},
    "unmarked": {"markers": ("", "")},
    "hybrid": {"pooled": True},
    "hybrid, expanded": {"pooled": True, "query_expansion": True, "markers": ("wave", "court")},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("late")
    return {name: late_model(home / name.replace(", ", "-"), **wanted) for name, wanted in WANTED.items()}


def test_the_folder_is_pylates(folders: dict[str, Path]) -> None:
    home = folders["expanded"]
    modules = json.loads((home / "modules.json").read_text())
    assert [(m["path"], m["type"]) for m in modules] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Dense", "pylate.models.Dense.Dense"),
    ]
    card = json.loads((home / "config_sentence_transformers.json").read_text())
    assert card == {
        "model_type": "ColBERT",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 32,
        "document_length": 64,  # the tiny encoder has no more positions
        "attend_to_expansion_tokens": False,
        "skiplist_words": sorted(MARKS),
        "do_query_expansion": True,
    }
    dense = json.loads((home / "1_Dense" / "config.json").read_text())
    assert dense == {
        "in_features": 32,
        "out_features": 16,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        "use_residual": False,
    }
    assert {name: tuple(t.shape) for name, t in load_file(home / "1_Dense" / "model.safetensors").items()} == {
        "linear.weight": (16, 32)
    }
    assert not [p for p in home.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("name", WANTED)
def test_what_is_written_is_read_again(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    layout, late = read_late(folders[name])
    assert late is not None and late.dim == 16 and late.pooled == ("pooled" in WANTED[name])
    assert late.query_expansion == WANTED[name].get("query_expansion", False)
    model = load_student(folders[name])
    save_late(model, layout, tmp_path / "again", tokenizer_from=folders[name])
    assert read_late(tmp_path / "again") == (layout, late)
    files = {p.relative_to(folders[name]): p.read_bytes() for p in folders[name].rglob("*.*") if p.is_file()}
    again = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*.*") if p.is_file()}
    assert {str(n) for n in files if files[n] != again.get(n)} <= {"tokenizer_config.json", "config.json"}


def test_a_new_projection_is_drawn_by_seed_and_keeps_lengths(tmp_path: Path) -> None:
    plain = tiny_encoder(tmp_path / "plain")
    one, two, other = (made_late(plain, {"dim": 16}, seed=seed)[0].dense[0][0].weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    torch.testing.assert_close(one @ one.T, torch.eye(16), atol=1e-5, rtol=0)


def test_token_vectors_are_of_unit_length_and_skipped_pieces_are_none(folders: dict[str, Path]) -> None:
    for name in ("plain", "expanded"):
        found = given(folders[name], "passage", PASSAGES)
        # [CLS], marker, words, [SEP]: without punctuation.
        assert [len(one) for one in found] == [8, 8, 64, 3]
        assert all(np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6) for one in found)
    assert [len(one) for one in given(folders["attended"], "passage", PASSAGES)] == [11, 8, 64, 6]
    assert [len(one) for one in given(folders["plain"], "query", QUERIES)] == [5, 6, 4, 32]
    assert [len(one) for one in given(folders["expanded"], "query", QUERIES)] == [32] * 4


@pytest.mark.parametrize("name", ["plain", "expanded", "attended"])
def test_padding_in_a_batch_changes_nothing(folders: dict[str, Path], name: str) -> None:
    layout, late = read_late(folders[name])
    assert late is not None
    model, tokenizer = load_late(folders[name]), load_tokenizer(folders[name], layout)
    reading = Reading.of(tokenizer, layout, late)
    for role, texts in (("query", QUERIES), ("passage", PASSAGES)):
        ids = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32) for text in texts]
        sequences = [reading.single(role, one) for one in ids]
        assert (
            reading.lengths(role, np.array([len(one) for one in ids])).max()
            == reading.inputs(role, sequences)["input_ids"].shape[1]
        )
        with torch.inference_mode():
            together = model.encode(reading.inputs(role, sequences))[""]
        for alone, row in zip(given(folders[name], role, texts), together, strict=True):
            np.testing.assert_allclose(row[row.ne(0).any(1)].numpy(), alone, atol=1e-5)


def test_unknown_words_are_never_skipped(tmp_path: Path) -> None:
    home = late_model(tmp_path / "m", source=tiny_encoder(tmp_path / "plain"))  # knows no punctuation: "." is [UNK]
    assert read_late(home)[1].skiplist == ()  # type: ignore[union-attr]
    assert len(given(home, "passage", ["wave . tide"])[0]) == 6


def test_colberts_own_folders_are_read(tmp_path: Path) -> None:
    home = tiny_encoder(tmp_path / "m", words=("[unused0]", "[unused1]", *MARKS))
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (home / name).unlink()
    shutil.rmtree(home / "1_Pooling")
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    weights = {f"bert.{name}": t for name, t in load_file(home / "model.safetensors").items()}
    linear = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    save_file({**weights, "linear.weight": linear}, home / "model.safetensors", metadata={"format": "pt"})
    about = {"query_maxlen": 20, "doc_maxlen": 40, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
    (home / "artifact.metadata").write_text(json.dumps({**about, "attend_to_mask_tokens": True, "mask_punctuation": False}))
    assert family(home) == "colbert"
    layout, late = read_late(home)
    assert (layout.query_max_len, layout.passage_max_len) == (20, 40)
    assert late == Late(
        dim=8, query_marker="[unused0]", passage_marker="[unused1]", query_expansion=True, attend_to_expansion=True
    )
    model, tokenizer = made_late(home, {}, seed=0)
    assert torch.equal(model.dense[0][0].weight, linear)
    save_late(model, layout, tmp_path / "pylate", tokenizer=tokenizer)
    for role, texts in (("query", QUERIES), ("passage", PASSAGES)):
        for a, b in zip(given(tmp_path / "pylate", role, texts), given(home, role, texts), strict=True):
            np.testing.assert_array_equal(a, b)
    assert {len(one) for one in given(home, "query", QUERIES)} == {20}


def test_what_cannot_be_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Pooling module.*student.kind: late_interaction"):
        read_layout(folders["plain"])
    with pytest.raises(InputError, match=r"student.dim: 8, and the model's token vectors have 16"):
        made_late(folders["plain"], {"dim": 8}, seed=0)
    plain = tiny_encoder(tmp_path / "plain")
    with pytest.raises(InputError, match=r"student.dim: 64, and the encoder's tokens have 32"):
        made_late(plain, {"dim": 64}, seed=0)
    modules = json.loads((folders["plain"] / "modules.json").read_text())
    broken = shutil.copytree(folders["plain"], tmp_path / "broken")
    (broken / "modules.json").write_text(json.dumps([*modules, {"path": "2_LSTM", "type": "x.LSTM"}]))
    with pytest.raises(InputError, match=r"modules \['Transformer', 'Dense', 'LSTM'\] are not those of PyLate"):
        read_late(broken)
    (broken / "modules.json").write_text(json.dumps(modules))
    dense = json.loads((broken / "1_Dense" / "config.json").read_text())
    (broken / "1_Dense" / "config.json").write_text(json.dumps({**dense, "use_residual": True}))
    with pytest.raises(InputError, match="use_residual is not supported"):
        read_late(broken)


@pytest.mark.parametrize("name", WANTED)
def test_sentence_transformers_gives_the_same_vectors(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    if not hasattr(library, "MultiVectorEncoder"):
        pytest.skip("a sentence-transformers without MultiVectorEncoder")
    from raydrd.models.late import flattened

    plain = library.MultiVectorEncoder(str(flattened(folders[name], tmp_path / "flat")), device="cpu")
    tokens = " tokens" if "pooled" in WANTED[name] else ""
    for role, texts, encode in (("query", QUERIES, plain.encode_query), ("passage", PASSAGES, plain.encode_document)):
        for ours, theirs in zip(given(folders[name], role, texts, tokens), encode(texts), strict=True):
            np.testing.assert_allclose(np.asarray(theirs), ours, atol=1e-6)
    if tokens:
        pooled = library.SentenceTransformer(str(folders[name]), device="cpu")
        short = QUERIES[:3]  # one length limit is all that it knows
        for role, texts, encode in (("query", short, pooled.encode_query), ("passage", PASSAGES, pooled.encode_document)):
            np.testing.assert_allclose(encode(texts), np.stack(given(folders[name], role, texts)), atol=1e-6)


# PyLate asks for its own versions of sentence-transformers and transformers, so it runs in a Python of its own.
PYLATE = os.environ.get("RAYDRD_PYLATE", "")
ENCODE = """
import json, sys
import numpy as np
from pylate import models
folder, texts, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
plain = models.ColBERT(folder, device="cpu")
found = {f"{role}{n}": one for role, own in texts.items() for n, one in enumerate(plain.encode(own, is_query=role == "query"))}
np.savez(out, **found)
"""
SCORE = """
import sys
import numpy as np, torch
from pylate import scores
own = np.load(sys.argv[1])
queries, passages = ([torch.from_numpy(own[f"{role}{n}"]) for n in range(4)] for role in ("query", "passage"))
one = lambda query, passage: float(scores.colbert_scores(query[None], passage[None])) if len(passage) else 0.0
np.save(sys.argv[2], [[one(query, passage) for passage in passages] for query in queries])
"""


@pytest.mark.skipif(not PYLATE, reason="RAYDRD_PYLATE names no Python with pylate installed")
@pytest.mark.parametrize("name", WANTED)
def test_pylate_gives_the_same_vectors_and_scores(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    hybrid = "pooled" in WANTED[name]
    tokens, texts = " tokens" if hybrid else "", {"query": QUERIES, "passage": PASSAGES}
    folder = folders[name] / HEAD if hybrid else folders[name]
    subprocess.run([PYLATE, "-c", ENCODE, str(folder), json.dumps(texts), str(tmp_path / "found.npz")], check=True)
    with np.load(tmp_path / "found.npz") as made:
        found = {role: [made[f"{role}{n}"] for n in range(len(own))] for role, own in texts.items()}
    for role, own in texts.items():
        for ours, theirs in zip(given(folders[name], role, own, tokens), found[role], strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-6)
    subprocess.run([PYLATE, "-c", SCORE, str(tmp_path / "found.npz"), str(tmp_path / "scores.npy")], check=True)
    width = found["query"][0].shape[1]
    mine = [torch.from_numpy(rectangle(given(folders[name], role, own, tokens), width)) for role, own in texts.items()]
    np.testing.assert_allclose(maxsim(*mine).numpy(), np.load(tmp_path / "scores.npy"), atol=1e-3)
