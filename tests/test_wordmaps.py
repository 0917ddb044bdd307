"""The word level of MD2PR against the numbers of the reference (section 6.5), plain loops, and models' own attention."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, DebertaV2Config, DebertaV2ForSequenceClassification

from raydrd.errors import InputError
from raydrd.methods.wordmaps import (
    TeacherMaps,
    WordMaps,
    content_ids,
    content_states,
    make_projection,
    row_divergences,
    student_maps,
    word_loss,
)
from raydrd.models.batching import SpecialTokens
from tests.worlds import tiny_cross_encoder, tiny_tokenizer

THERE = [[0.30, 0.10, 0.10], [0.05, 0.20, 0.0]]
BACK = [[0.20, 0.10], [0.05, 0.30], [0.02, 0.02]]
STUDENT = [[1.0, 0.2, -0.3], [0.1, 0.8, 0.4]]
QUERY = ["wave tide old reef", "oven", "judge court verdict lawyer appeal the"]
PASSAGE = ["the sail and anchor", "flour butter knife recipe spice boil plate for some new planet", "moon"]


def maps64(*values: Any) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def everything(student_BQP: Tensor) -> tuple[Tensor, Tensor]:
    pairs, queries, passages = student_BQP.shape
    return torch.ones(pairs, queries, dtype=torch.bool), torch.ones(pairs, passages, dtype=torch.bool)


def near(value: object) -> object:
    return pytest.approx(value, abs=1e-6)


def slow_half(teacher: list[list[float]], student: list[list[float]], uniform: bool) -> float:
    total = weights = 0.0
    for t, s in zip(teacher, student, strict=True):
        mass = sum(t)
        if mass == 0:
            continue
        norm = math.log(sum(math.exp(x) for x in s))
        kl = sum(a / mass * (math.log(a / mass) - (b - norm)) for a, b in zip(t, s, strict=True) if a > 0)
        weight = 1.0 if uniform else mass
        total, weights = total + weight * kl, weights + weight
    return total / weights if weights else 0.0


def slow_word_loss(
    there: Tensor, back: Tensor, student: Tensor, queries: list[int], passages: list[int], uniform: bool
) -> float:
    total = 0.0
    for b, (q, p) in enumerate(zip(queries, passages, strict=True)):
        one = slow_half(there[b, :q, :p].tolist(), student[b, :q, :p].tolist(), uniform)
        other = slow_half(back[b, :p, :q].tolist(), student[b, :q, :p].T.tolist(), uniform)
        total += (one + other) / 2
    return total


def random_maps(queries: list[int], passages: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maps of pairs of these lengths, with rubbish in the padding."""
    draw = torch.Generator().manual_seed(seed)
    shape = len(queries), max(queries) + 1, max(passages) + 2
    there, back = (torch.rand(s, generator=draw, dtype=torch.float64) for s in (shape, (shape[0], shape[2], shape[1])))
    student = 3 * torch.randn(shape, generator=draw, dtype=torch.float64)
    there[0, 0] = back[1, 1] = 0  # tokens that look at special tokens only
    there[1, 0, 1] = 0
    masks = [torch.arange(n) < torch.tensor(lengths)[:, None] for n, lengths in ((shape[1], queries), (shape[2], passages))]
    return there, back, student, masks[0], masks[1]


# -- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.1046247),
        ({"row_weights": "uniform"}, 0.1361356),
        ({"directions": "query"}, 0.1463892),
        ({"directions": "passage"}, 0.0628602),
    ],
)
def test_the_reference_vectors(options: dict[str, Any], expected: float) -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    total, count = word_loss(there, back, student, *everything(student), **options)
    assert (total.item(), count) == (near(expected), 1.0)


def test_the_reference_vectors_of_single_tokens() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    queries, passages = everything(student)
    divergences, mass = row_divergences(there, student, queries, passages)
    assert divergences[0].tolist() == near([0.0131350, 0.4128976]) and mass[0].tolist() == near([0.5, 0.25])
    divergences, mass = row_divergences(back, student.mT, passages, queries)
    assert divergences[0].tolist() == near([0.0046397, 0.1130859, 0.0600389]) and mass[0].tolist() == near([0.3, 0.35, 0.04])


@pytest.mark.parametrize("row_weights", ["mass", "uniform"])
def test_the_same_maps_cost_nothing(row_weights: Any) -> None:
    *_, student, queries, passages = random_maps([3, 5], [4, 2])
    there = student.masked_fill(~passages[:, None, :], -torch.inf).softmax(2) * 0.3
    back = student.mT.masked_fill(~queries[:, None, :], -torch.inf).softmax(2) * 0.1
    total, count = word_loss(there, back, student.requires_grad_(), queries, passages, row_weights=row_weights)
    assert (total.item(), count) == (pytest.approx(0, abs=1e-12), 2.0)
    assert torch.autograd.grad(total, student)[0].abs().max() < 1e-12


@pytest.mark.parametrize("uniform", [False, True])
def test_the_loss_equals_a_plain_loop(uniform: bool) -> None:
    lengths = [3, 5, 1], [4, 2, 6]
    there, back, student, queries, passages = random_maps(*lengths)
    total, count = word_loss(there, back, student, queries, passages, row_weights="uniform" if uniform else "mass")
    assert total.item() == pytest.approx(slow_word_loss(there, back, student, *lengths, uniform), abs=1e-12)
    assert count == 3.0
    single, _ = word_loss(there.float(), back.float(), student.float(), queries, passages, row_weights="mass")
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(slow_word_loss(there, back, student, *lengths, False), abs=1e-5)


def test_the_gradient_is_that_of_differences() -> None:
    there, back, student, queries, passages = random_maps([3, 2], [2, 3])
    assert torch.autograd.gradcheck(lambda s: word_loss(there, back, s, queries, passages)[0], student.requires_grad_())


@pytest.mark.parametrize("rubbish", [7.0, -1e30, math.inf, -math.inf, math.nan])
def test_padding_has_no_influence(rubbish: float) -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    plain = student.clone().requires_grad_()
    expected, _ = word_loss(there, back, plain, *everything(plain))
    wide = [torch.full(shape, rubbish, dtype=torch.float64) for shape in ((1, 4, 5), (1, 5, 4), (1, 4, 5))]
    wide[0][:, :2, :3], wide[1][:, :3, :2], wide[2][:, :2, :3] = there, back, student
    queries, passages = (torch.arange(n) < real for n, real in ((4, 2), (5, 3)))
    padded = wide[2].requires_grad_()
    total, count = word_loss(wide[0], wide[1], padded, queries[None], passages[None])
    assert (total.item(), count) == (near(0.1046247), 1.0)
    gradient = torch.autograd.grad(total, padded)[0]
    torch.testing.assert_close(gradient[:, :2, :3], torch.autograd.grad(expected, plain)[0])
    assert gradient.abs().sum() == gradient[:, :2, :3].abs().sum() > 0


def test_where_the_padding_stands_does_not_matter() -> None:
    there, back, student, queries, passages = random_maps([3, 5], [4, 2])
    expected, _ = word_loss(there, back, student, queries, passages)
    rows, columns = torch.randperm(student.shape[1]), torch.randperm(student.shape[2])
    moved = (there[:, rows][:, :, columns], back[:, columns][:, :, rows], student[:, rows][:, :, columns])
    total, count = word_loss(*moved, queries[:, rows], passages[:, columns])
    assert (total.item(), count) == (pytest.approx(expected.item(), abs=1e-12), 2.0)


@pytest.mark.parametrize("row_weights", ["mass", "uniform"])
def test_rows_without_mass_are_left_out(row_weights: Any) -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    expected, _ = word_loss(there, back, student, *everything(student), row_weights=row_weights, directions="query")
    longer = torch.cat([there, torch.zeros(1, 1, 3)], 1), torch.cat([student, torch.tensor([[[9.0, -9.0, 0.0]]])], 1)
    scores = longer[1].requires_grad_()
    total, _ = word_loss(
        longer[0], torch.zeros(1, 3, 3), scores, *everything(scores), row_weights=row_weights, directions="query"
    )
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.autograd.grad(total, scores)[0][0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("row_weights", ["mass", "uniform"])
def test_a_pair_without_mass_or_tokens_adds_nothing(row_weights: Any) -> None:
    there, back, student = (torch.cat([m, m, m]) for m in maps64(THERE, BACK, STUDENT))
    there[1], back[1] = 0, 0
    queries, passages = everything(student)
    passages[2] = False  # a place of the batch that holds no pair
    scores = student.requires_grad_()
    total, count = word_loss(there, back, scores, queries, passages, row_weights=row_weights)
    assert (total.item(), count) == (near(0.1046247 if row_weights == "mass" else 0.1361356), 2.0)
    gradient = torch.autograd.grad(total, scores)[0]
    assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0


def test_a_teacher_that_is_not_a_number_is_not_hidden() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    there[0, 1, 1] = math.nan
    assert word_loss(there, back, student, *everything(student))[0].isnan()


def test_half_precision_is_raised() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    total, _ = word_loss(there, back, student.bfloat16(), *everything(student))
    assert total.dtype == torch.float32 and total.item() == pytest.approx(0.1046247, abs=2e-3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    queries, passages = everything(student)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        word_loss(there, back.mT, student, queries, passages)
    with pytest.raises(ValueError, match=r"masks are torch.int64"):
        word_loss(there, back, student, queries.long(), passages)


# -- the config ---------------------------------------------------------------------------------------------


def test_the_weight_grows_linearly() -> None:
    rule = WordMaps()
    assert [rule.weight_at(p) for p in (0.0, 0.025, 0.05, 0.1, 0.5, 1.0)] == pytest.approx([0, 0.125, 0.25, 0.5, 0.5, 0.5])
    assert WordMaps(warmup=0).weight_at(0.0) == 0.5
    assert WordMaps(warmup=1).weight_at(0.5) == 0.25
    with pytest.raises(ValueError, match="progress 1.5"):
        rule.weight_at(1.5)


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"layers": 0}, {"negatives": -1}, {"projection": 0}, {"rows": 1}])
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        WordMaps(**wrong)


# -- the student --------------------------------------------------------------------------------------------


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


# -- the teacher --------------------------------------------------------------------------------------------


def sharpen(folder: Path) -> Path:
    """Larger matrices: a freshly drawn model attends nearly alike to everything, and any tolerance would pass."""
    file = folder / "model.safetensors"
    save_file({n: 8 * t if t.ndim > 1 else t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


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
    maps.special = replace(maps.special, pair_template=template._replace(runs=runs, run_types=types, text_types=(0, 0)))
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
