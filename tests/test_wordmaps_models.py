"""Word maps of the student, and of a teacher by its own attention."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DebertaV2Config, DebertaV2ForSequenceClassification

from raydrd.errors import InputError
from raydrd.methods.wordmaps import TeacherMaps, WordMaps, content_ids, content_states, make_projection, student_maps, word_loss
from raydrd.models.batching import SpecialTokens
from tests.worlds import sharpen, tiny_cross_encoder, tiny_tokenizer

QUERY = ["wave tide old reef", "oven", "judge court verdict lawyer appeal the"]
PASSAGE = ["the sail and anchor", "flour butter knife recipe spice boil plate for some new planet", "moon"]


# -- the student --------------------------------------------------------------------------------------


def test_a_projection_depends_on_its_seed_only() -> None:
    before = torch.get_rng_state()
    first = make_projection(32, WordMaps(projection=8), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (make_projection(32, WordMaps(projection=8), seed=s) for s in (1, 2))
    assert first is not None and again is not None and other is not None
    assert first.weight.shape == (8, 32) and first.bias is None and first.weight.requires_grad
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert make_projection(32, WordMaps(projection=None), seed=1) is None


def test_a_projection_keeps_the_scale_of_inner_products() -> None:
    layer = make_projection(256, WordMaps(projection=128), seed=0)
    assert layer is not None
    states = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    ratio = layer(states).square().sum(1) / states.square().sum(1)
    assert ratio.mean().item() == pytest.approx(128 / 256, rel=0.05)


@pytest.mark.parametrize("projection", [None, 4])
def test_student_maps_are_scaled_inner_products(projection: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    query, passage = torch.randn(2, 3, 6, generator=draw), torch.randn(2, 5, 6, generator=draw)
    layer = make_projection(6, WordMaps(projection=projection), seed=3)
    made = student_maps(query, passage, layer)
    weight = torch.eye(6) if layer is None else layer.weight
    for b in range(2):
        for i in range(3):
            for j in range(5):
                expected = (weight @ query[b, i]) @ (weight @ passage[b, j]) / math.sqrt(projection or 6)
                assert made[b, i, j].item() == pytest.approx(expected.item(), abs=1e-5)
    assert student_maps(query.bfloat16(), passage.bfloat16(), layer).dtype == torch.float32


def special_tokens() -> SpecialTokens:
    return SpecialTokens.of(tiny_tokenizer())


def ids_of(texts: list[str]) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    tokenizer = tiny_tokenizer()
    return [np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32) for text in texts]


def test_content_tokens_are_those_the_student_sees() -> None:
    special = special_tokens()
    for limit in (2, 5, 64):
        cut = content_ids(ids_of(PASSAGE), special, limit)
        singles = [special.single(ids, limit).ids for ids in ids_of(PASSAGE)]
        assert [ids.tolist() for ids in cut] == [ids[1:-1].tolist() for ids in singles]
    with pytest.raises(ValueError, match="1 tokens has no room for 2"):
        content_ids(ids_of(PASSAGE), special, 1)


@pytest.mark.parametrize("runs", [(1, 1), (0, 2), (2, 0)])
def test_content_states_are_those_of_content_tokens(runs: tuple[int, int]) -> None:
    special = special_tokens()
    run = [np.zeros(n, dtype=np.int32) for n in runs]
    special = replace(special, single_template=special.single_template._replace(runs=tuple(run), run_types=tuple(run)))
    lengths, before = [3, 1, 0, 5], runs[0]
    states = torch.full((4, 9, 2), math.nan)  # padding and special tokens
    for b, n in enumerate(lengths):
        states[b, before : before + n] = torch.arange(2.0 * n).view(n, 2) + 100 * b
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None] + sum(runs)).long()
    for width in (None, 5, 12):
        found, there = content_states(states.requires_grad_(), mask, special, width=width)
        assert found.shape == (4, width or 5, 2) and there.sum(1).tolist() == lengths
        for b, n in enumerate(lengths):
            assert torch.equal(found[b, :n], states[b, before : before + n])
            assert not found[b, n:].any() and there[b, :n].all()
    with pytest.raises(ValueError, match="0 to 5 content tokens do not fit a width of 4"):
        content_states(states, mask, special, width=4)
    with pytest.raises(ValueError, match="-1 to"):
        content_states(states, torch.ones(4, 1), special)


def test_what_stands_in_the_padding_of_states_gets_no_gradient() -> None:
    special, draw = special_tokens(), torch.Generator().manual_seed(0)
    lengths = [[2, 4], [3, 1]]
    states, made, masks = [], [], []
    for those in lengths:
        real = (torch.arange(7) >= 1) & (torch.arange(7) <= torch.tensor(those)[:, None])
        full = torch.randn(2, 7, 6, generator=draw).masked_fill(~real[:, :, None], math.nan).requires_grad_()
        found, mask = content_states(full, (torch.arange(7) < torch.tensor(those)[:, None] + 2).long(), special)
        states.append((full, real))
        made.append(found)
        masks.append(mask)
    layer = make_projection(6, WordMaps(projection=4), seed=0)
    assert layer is not None
    scores = student_maps(made[0], made[1], layer)
    total, count = word_loss(torch.rand(2, 4, 3), torch.rand(2, 3, 4), scores, *masks)
    total.backward()
    assert count == 2.0 and total.isfinite() and layer.weight.grad is not None and layer.weight.grad.isfinite().all()
    for full, real in states:
        assert full.grad is not None and full.grad[~real].abs().sum() == 0
        assert (full.grad[real].abs().sum(1) > 0).any() and full.grad.isfinite().all()


# -- the teacher --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpen(tiny_cross_encoder(tmp_path_factory.mktemp("bert"), layers=3, dropout=0.1))


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose attention is not BERT's: rows of padding sum to 0."""
    folder, tokenizer = tmp_path_factory.mktemp("deberta"), tiny_tokenizer()
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, type_vocab_size=2, relative_attention=True, pos_att_type=["p2c", "c2p"], num_labels=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sharpen(folder)


def own_attention(folder: Path, ids: list[int], types: list[int], layers: int) -> Tensor:
    """Mean over the last layers and all heads, [T, T], of one sequence alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]), output_attentions=True)
    return torch.stack(out.attentions[-layers:]).mean((0, 2))[0]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_maps_are_slices_of_the_models_own_attention(family: str, layers: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    queries, passages = ids_of(QUERY), ids_of(PASSAGE)
    there, back, query_mask, passage_mask = TeacherMaps(folder, layers=layers)(queries, passages)
    assert there.shape == (3, 6, 11) and back.shape == (3, 11, 6) and there.dtype == back.dtype == torch.float32
    assert query_mask.sum(1).tolist() == [4, 1, 6] and passage_mask.sum(1).tolist() == [4, 11, 1]
    cls, sep = tiny_tokenizer().convert_tokens_to_ids(["[CLS]", "[SEP]"])
    for b, (q, p) in enumerate(zip(queries, passages, strict=True)):
        types = [0] * (len(q) + 2) + [1] * (len(p) + 1)
        whole = own_attention(folder, [cls, *q.tolist(), sep, *p.tolist(), sep], types, layers)
        text, other = slice(1, 1 + len(q)), slice(2 + len(q), 2 + len(q) + len(p))
        torch.testing.assert_close(there[b, : len(q), : len(p)], whole[text, other], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(back[b, : len(p), : len(q)], whole[other, text], atol=1e-5, rtol=1e-4)
        # What is not on the other text is on the own one and on the special tokens.
        rest = whole[text].sum(1) - whole[text, other].sum(1)
        torch.testing.assert_close(there[b].sum(1)[: len(q)] + rest, torch.ones(len(q)), atol=1e-5, rtol=0)
        assert rest.min() > 0
    padding = ~(query_mask[:, :, None] & passage_mask[:, None, :])
    assert there[padding].abs().sum() == 0 and back.mT[padding].abs().sum() == 0
    assert there.std() > 0.01


def test_batches_are_cut_without_a_trace(bert: Path) -> None:
    maps = TeacherMaps(bert)
    whole = maps(ids_of(QUERY), ids_of(PASSAGE))
    maps._cells = 1  # one pair a batch
    for made, expected in zip(maps(ids_of(QUERY), ids_of(PASSAGE)), whole, strict=True):
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


def test_positions_follow_the_template(bert: Path) -> None:
    """As RoBERTa has it: two tokens between the texts; and two before the first."""
    maps = TeacherMaps(bert)
    template = maps.special.pair_template
    cls, sep, _ = (run.tolist() for run in template.runs)
    runs = tuple(np.array(run, dtype=np.int32) for run in (cls * 2, sep * 2, sep))
    types = tuple(np.zeros(len(run), dtype=np.int32) for run in runs)
    maps.special = replace(maps.special, pairs=template._replace(runs=runs, run_types=types, text_types=(0, 0)))
    q, p = ids_of(QUERY[:1])[0], ids_of(PASSAGE[1:2])[0]
    made = maps([q], [p])
    ids = [*cls, *cls, *q.tolist(), *sep, *sep, *p.tolist(), *sep]
    whole = own_attention(bert, ids, [0] * len(ids), 1)
    first, second = 2, 4 + len(q)
    torch.testing.assert_close(made[0][0], whole[first : first + len(q), second : second + len(p)], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made[1][0], whole[second : second + len(p), first : first + len(q)], atol=1e-5, rtol=1e-4)


def test_the_teacher_is_frozen_and_its_maps_may_enter_a_graph(bert: Path) -> None:
    maps = TeacherMaps(bert)
    assert not any(p.requires_grad for p in maps.model.parameters()) and not maps.model.training
    made = maps(ids_of(QUERY), ids_of(PASSAGE))
    for one, again in zip(made, maps(ids_of(QUERY), ids_of(PASSAGE)), strict=True):
        assert torch.equal(one, again)
    scores = nn.Parameter(torch.zeros_like(made.query_to_passage_BQP))
    # A product with the maps in the graph: inference tensors would be refused here.
    (scores * made.query_to_passage_BQP).sum().backward()
    total, count = word_loss(*made[:2], scores, *made[2:])
    total.backward()
    assert count == 3.0 and total > 0 and scores.grad is not None and scores.grad.isfinite().all()


def test_bf16_gives_nearly_the_same(bert: Path) -> None:
    texts = ids_of(QUERY), ids_of(PASSAGE)
    exact, rounded = (TeacherMaps(bert, precision=p)(*texts).query_to_passage_BQP for p in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.01


def test_a_model_without_attention_weights_is_refused(bert: Path) -> None:
    maps = TeacherMaps(bert)
    assert maps.model.config._attn_implementation == "eager"
    maps.model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=rf"{bert.name}.* attn_implementation='sdpa' gives no attention weights"):
        maps(ids_of(QUERY), ids_of(PASSAGE))


@pytest.mark.parametrize("spoil", [lambda a: a * 0.5, lambda a: a * math.nan, lambda a: a.flip(3)])
def test_attention_that_does_not_sum_to_one_is_refused(bert: Path, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, plain = TeacherMaps(bert), TeacherMaps(bert).model
    monkeypatch.setattr(
        maps, "model", lambda **inputs: SimpleNamespace(attentions=tuple(map(spoil, plain(**inputs).attentions)))
    )
    maps.model.config = plain.config
    with pytest.raises(ValueError, match=rf"{bert.name} with attn_implementation='eager' .*rows do not sum to 1"):
        maps(ids_of(QUERY), ids_of(PASSAGE))


def test_pairs_that_do_not_fit_are_refused(bert: Path) -> None:
    maps = TeacherMaps(bert)
    queries, passages = ids_of(QUERY), ids_of(PASSAGE)
    longest = 1 + 11 + 3
    maps(queries, passages, max_length=longest)
    with pytest.raises(ValueError, match=rf"pair 1 has 15 tokens .* {bert} reads 14"):
        maps(queries, passages, max_length=longest - 1)
    with pytest.raises(ValueError, match=r"pair 0 has 65 .* reads 64"):  # the tokenizer's own limit
        maps([np.repeat(queries[1], 31)], [np.repeat(passages[2], 31)], max_length=512)
    with pytest.raises(ValueError, match="3 queries and 2 passages"):
        maps(queries, passages[:2])
    with pytest.raises(ValueError, match="0 queries and 0 passages"):
        maps([], [])


def test_an_empty_text_makes_an_empty_map(bert: Path) -> None:
    nothing = np.array([], dtype=np.int32)
    made = TeacherMaps(bert)([ids_of(QUERY)[0], nothing], [nothing, nothing])
    scores = torch.zeros_like(made.query_to_passage_BQP, requires_grad=True)
    total, count = word_loss(*made[:2], scores, *made[2:])
    assert scores.shape == (2, 4, 0) and (total.item(), count) == (0.0, 0.0)


def test_too_many_layers_are_refused(bert: Path) -> None:
    with pytest.raises(InputError, match=r"word_maps.layers: 4: .* has 3 layers; write 1 to 3"):
        TeacherMaps(bert, layers=4)
