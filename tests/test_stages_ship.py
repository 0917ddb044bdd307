"""The index finds what search finds, and an export does what was measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.errors import InputError, StageError
from raydrd.models.layout import read_layout
from raydrd.spine.store import Artifact, Store
from raydrd.stages.adopt import Student, adopt, located, model_folder
from raydrd.stages.index import build_index
from raydrd.stages.ship import verify_export
from tests.stage_inputs import embed_all, matrix_of, open_data, open_model, open_tokens, with_resources


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
def test_the_index_finds_what_search_finds(store: Store, toy: Path, factory: str) -> None:
    import faiss

    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    made = embed_all(store, model, data, "corpus")
    index = store.run(build_index, vectors=made, data=data, factory=factory)
    home = index.folder / "index"
    loaded = faiss.read_index(str(home.local("index.faiss")))
    assert loaded.ntotal == 60 and loaded.metric_type == faiss.METRIC_INNER_PRODUCT
    assert home.read_table("ids.parquet")["doc_id"].to_pylist() == [f"d{n:02d}" for n in range(60)]
    vectors_ = matrix_of(made)
    if factory.startswith("IVF"):
        loaded.nprobe = 4  # all lists: exact
    scores, rows = loaded.search(vectors_[:20], 3)
    exact = np.sort(vectors_[:20] @ vectors_.T, axis=1)[:, ::-1][:, :3]
    if factory == "HNSW8":
        assert (rows[:, 0] == np.arange(20)).mean() > 0.9
    else:
        np.testing.assert_allclose(scores, exact, atol=1e-5)
        assert rows[:, 0].tolist() == list(range(20))


def test_an_index_that_faiss_does_not_know_is_the_users_mistake(store: Store, toy: Path) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    with pytest.raises(InputError, match="index: FAISS cannot make 'Flatt' for width 32"):
        store.run(build_index, vectors=embed_all(store, model, data, "corpus"), data=data, factory="Flatt")


def _verify(store: Store, model: Artifact, data: Artifact) -> Artifact:
    tokens = {name: open_tokens(store, model, data, name) for name in ("queries/test", "corpus")}
    return store.run(
        verify_export, model=model, data=data, query_tokens=tokens["queries/test"], passage_tokens=tokens["corpus"]
    )


@pytest.mark.parametrize(
    "changes", [{}, {"towers": "separate", "query_prompt": "how "}, {"pooling": "cls", "normalize": False}]
)
def test_an_export_that_does_what_was_measured_passes(store: Store, toy: Path, changes: dict[str, Any]) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student", **copy.deepcopy(changes))
    made = _verify(store, model, data)
    assert made.metrics["difference"] < 1e-5 and made.metrics["rows"] == 44


def test_an_export_that_plain_tools_read_otherwise_fails(store: Store, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    _verify(with_resources(store, Path(store.root.uri).parent / "good"), model, data)
    # Whatever goes wrong between the two, here our own pooling is another one than the folder tells the world.
    import raydrd.models.encoders as module

    monkeypatch.setattr(module, "pool", lambda states, mask, how: states[:, 0])
    with pytest.raises(StageError, match=r"export: plain sentence-transformers gives other vectors \(difference"):
        _verify(store, model, data)
    assert not [r for r in store.journal if r.name == "verify_export"]


def test_a_tampered_export_fails(store: Store, toy: Path) -> None:
    import json

    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    tokens = {name: open_tokens(store, model, data, name) for name in ("queries/test", "corpus")}
    card = Path(model_folder(model).uri) / "config_sentence_transformers.json"
    values = json.loads(card.read_text())
    values["prompts"]["document"] = "the old "  # the tokens were made without it
    card.write_text(json.dumps(values))
    with pytest.raises(StageError, match="plain sentence-transformers gives other vectors"):
        store.run(verify_export, model=model, data=data, query_tokens=tokens["queries/test"], passage_tokens=tokens["corpus"])


def test_a_cut_and_an_uncut_student_are_two_models(store: Store, toy: Path) -> None:
    source = located(Student(model=str(toy / "deep")))
    layout = read_layout(source.where)
    uncut, cut = (store.run(adopt, source=source, layout=layout, layers=layers) for layers in (None, 2))
    assert uncut.id != cut.id and (uncut.metrics["layers"], cut.metrics["layers"]) == (4, 2)
    assert cut.metrics["size_mb"] < uncut.metrics["size_mb"] and cut.metrics["tokenizer"] == uncut.metrics["tokenizer"]
    with pytest.raises(InputError, match=r"student.layers: 9: the model has 4 layers"):
        store.run(adopt, source=source, layout=layout, layers=9)
