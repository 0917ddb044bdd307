"""Encoders pool, cut and save so that plain sentence-transformers gives the same vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from raydrd.errors import InputError
from raydrd.models.encoders import BiEncoder, cut, kept_layers, load_biencoder, load_tower, pool, save_biencoder, untie
from raydrd.models.layout import Layout, read_layout
from tests.worlds import tiny_encoder

TEXTS = ["wave and tide", "oven", "the planet of some old comet with a telescope", "judge court verdict lawyer"]


def _inputs(folder: Path, texts: list[str] = TEXTS, **more: Any) -> tuple[Tensor, Tensor]:
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt", **more)
    return batch["input_ids"], batch["attention_mask"]


@torch.inference_mode()
def _vectors(encoder: nn.Module, folder: Path, texts: list[str] = TEXTS) -> Tensor:
    return encoder(*_inputs(folder, texts))  # type: ignore[no-any-return]


def _slow_pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    rows = []
    for state, keep in zip(states, mask, strict=True):
        real = [state[t] for t in range(len(keep)) if keep[t]]
        rows.append(
            {
                "cls": lambda real=real, state=state: state[0],
                "lasttoken": lambda real=real, state=state: real[-1],
                "mean": lambda real=real, state=state: sum(real) / len(real),
                "max": lambda real=real, state=state: torch.stack(real).max(0).values,
            }[how]()
        )
    return torch.stack(rows)


@pytest.mark.parametrize("how", ["mean", "cls", "max", "lasttoken"])
def test_pooling_equals_a_slow_loop(how: str) -> None:
    states = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0)) - 5  # all negative: a zero would be a maximum
    lengths = torch.tensor([7, 1, 3, 6, 2])
    mask = (torch.arange(7) < lengths[:, None]).long()
    torch.testing.assert_close(pool(states, mask, how), _slow_pool(states, mask, how))
    poisoned = states.masked_fill(mask[..., None] == 0, 1e6)
    torch.testing.assert_close(pool(poisoned, mask, how), pool(states, mask, how))
    if how != "cls":  # padding on the left is padding too
        left = mask.flip(1)
        torch.testing.assert_close(pool(states, left, how), _slow_pool(states, left, how))


def test_half_precision_means_are_summed_in_float32() -> None:
    states = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    assert pool(states, torch.ones(1, 4096, dtype=torch.long), "mean").item() == 1.0


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [(2, 6, (0, 5)), (1, 6, (5,)), (3, 12, (0, 6, 11)), (6, 6, (0, 1, 2, 3, 4, 5)), ((0, 3), 6, (0, 3)), ((2,), 6, (2,))],
)
def test_which_layers_a_cut_keeps(layers: Any, total: int, kept: tuple[int, ...]) -> None:
    assert kept_layers(layers, total) == kept


@pytest.mark.parametrize("layers", [0, 7, -1, (), (0, 6), (3, 0), (0, 0), (-1, 2)])
def test_impossible_cuts_are_refused(layers: Any) -> None:
    with pytest.raises(InputError, match=r"student.layers: .*write"):
        kept_layers(layers, 6)


def test_any_number_of_layers_keeps_the_first_and_the_last() -> None:
    for total in range(2, 25):
        for layers in range(2, total + 1):
            kept = kept_layers(layers, total)
            assert kept[0] == 0 and kept[-1] == total - 1 and len(set(kept)) == layers and list(kept) == sorted(kept)


@pytest.mark.parametrize(("layers", "kept"), [(2, (0, 3)), ((1, 2), (1, 2))])
def test_a_cut_encoder_is_the_one_made_by_hand(toy: Path, tmp_path: Path, layers: Any, kept: tuple[int, ...]) -> None:
    folder = toy / "deep"
    model = load_biencoder(folder)
    before = _vectors(model.passage, folder)
    cut(model.passage, layers)
    assert model.query is model.passage
    ids, mask = _inputs(folder)
    body = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():  # embeddings, the kept layers one by one, mean, unit length
        states = body.embeddings(ids)
        shown = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        for number in kept:
            found = body.encoder.layer[number](states, shown)
            states = found[0] if isinstance(found, tuple) else found
        by_hand = nn.functional.normalize(_slow_pool(states, mask, "mean"), dim=-1)
    torch.testing.assert_close(_vectors(model.passage, folder), by_hand, atol=1e-6, rtol=0)
    assert (_vectors(model.passage, folder) - before).abs().max() > 1e-3
    save_biencoder(model, read_layout(folder), tmp_path / "cut", tokenizer_from=folder)
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["num_hidden_layers"] == 2
    torch.testing.assert_close(_vectors(load_tower(tmp_path / "cut", read_layout(tmp_path / "cut"), "query"), folder), by_hand)
    whole, part = (sum(f.stat().st_size for f in d.glob("*.safetensors")) for d in (folder, tmp_path / "cut"))
    assert part < whole


def test_loading_is_fp32_eval_and_without_a_pooler(toy: Path) -> None:
    tower = load_tower(toy / "student", read_layout(toy / "student"), "query")
    assert not tower.training and {p.dtype for p in tower.parameters()} == {torch.float32}
    assert not [name for name, _ in tower.named_parameters() if "pooler" in name]
    assert tower.width == 32


@pytest.mark.parametrize("how", ["cls", "max", "lasttoken", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_shared_encoder_loads_in_plain_sentence_transformers(
    toy: Path, tmp_path: Path, how: Any, normalize: bool
) -> None:
    layout = Layout(pooling=how, normalize=normalize, query_max_len=16, passage_max_len=16, query_prompt="the ")
    model = load_biencoder(toy / "student")
    for tower in (model.query, model.passage):
        tower.layout = layout
    save_biencoder(model, layout, tmp_path / "m", tokenizer_from=toy / "student")
    plain = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    ours = load_biencoder(tmp_path / "m")
    assert plain.max_seq_length == 16
    np.testing.assert_allclose(plain.encode_document(TEXTS), _vectors(ours.passage, tmp_path / "m"), atol=1e-5)
    prompted = _vectors(ours.query, tmp_path / "m", [f"the {text}" for text in TEXTS])
    np.testing.assert_allclose(plain.encode_query(TEXTS), prompted, atol=1e-5)
    assert (np.abs(plain.encode_query(TEXTS) - plain.encode_document(TEXTS)) > 1e-3).any()


def test_separate_towers_load_as_a_router_and_stay_apart(toy: Path, tmp_path: Path) -> None:
    model = untie(load_biencoder(toy / "student"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.query.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    layout = Layout(
        pooling="mean", normalize=True, towers="separate", query_max_len=12, passage_max_len=24, query_prompt="how ",
        passage_prompt="about ",
    )  # fmt: skip
    save_biencoder(model, layout, tmp_path / "two", tokenizer_from=toy / "student")
    found = read_layout(tmp_path / "two")
    assert found.towers == "separate" and (found.query_max_len, found.passage_max_len) == (12, 24)
    ours = load_biencoder(tmp_path / "two")
    assert ours.query is not ours.passage
    query = _vectors(ours.query, toy / "student", [f"how {t}" for t in TEXTS])
    passage = _vectors(ours.passage, toy / "student", [f"about {t}" for t in TEXTS])
    torch.testing.assert_close(query, _vectors(model.query, toy / "student", [f"how {t}" for t in TEXTS]))
    plain = SentenceTransformer(str(tmp_path / "two"), device="cpu")
    assert np.abs(plain.encode_query(TEXTS) - query.numpy()).max() < 1e-4
    assert np.abs(plain.encode_document(TEXTS) - passage.numpy()).max() < 1e-4
    other = _vectors(ours.passage, toy / "student", [f"how {t}" for t in TEXTS])
    assert (query - other).abs().max() > 1e-2


def test_untied_towers_share_no_weights(toy: Path) -> None:
    model = untie(load_biencoder(toy / "student"))
    before = model.passage.backbone.embeddings.word_embeddings.weight.clone()
    with torch.no_grad():
        model.query.backbone.embeddings.word_embeddings.weight.add_(1)
    assert torch.equal(model.passage.backbone.embeddings.word_embeddings.weight, before)
    shared = load_biencoder(toy / "student")
    assert len(list(model.parameters())) == 2 * len(list(shared.parameters()))


@pytest.mark.parametrize("towers", ["shared", "separate"])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_dense_modules_are_honoured_and_saved(tmp_path: Path, towers: Any, activation: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    bare = tiny_encoder(tmp_path / "bare")
    torch.manual_seed(0)
    dense = Dense(32, 8, activation_function=getattr(nn, activation)())
    source = SentenceTransformer(modules=[Transformer(str(bare)), Pooling(32, "mean"), dense, Normalize()], device="cpu")
    source.save_pretrained(str(tmp_path / "st"), create_model_card=False)
    expected = source.encode(TEXTS)
    layout = read_layout(tmp_path / "st")
    assert layout.dense == ("2_Dense",) and layout.normalize
    model: BiEncoder = load_biencoder(tmp_path / "st")
    assert model.passage.width == 8
    np.testing.assert_allclose(_vectors(model.passage, bare), expected, atol=1e-5)
    if towers == "separate":
        model, layout = untie(model), layout.model_copy(update={"towers": "separate"})
    save_biencoder(model, layout, tmp_path / "again", tokenizer_from=bare)
    np.testing.assert_allclose(_vectors(load_biencoder(tmp_path / "again").query, bare), expected, atol=1e-5)
    plain = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(plain.encode_document(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(plain.encode_query(TEXTS), expected, atol=1e-5)


def test_a_dense_activation_that_is_not_known_is_refused(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    bare = tiny_encoder(tmp_path / "bare")
    modules = [Transformer(str(bare)), Pooling(32, "mean"), Dense(32, 8, activation_function=nn.Softplus())]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "st"), create_model_card=False)
    with pytest.raises(InputError, match="activation Softplus is not supported; use Identity, Tanh, GELU or ReLU"):
        load_biencoder(tmp_path / "st")
