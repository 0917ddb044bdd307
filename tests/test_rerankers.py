"""Cross-encoders learn in the same loop as bi-encoders: from pairs and from duels, and can be interrupted anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydrd.errors import InputError
from raydrd.methods.lists import POSITIVE
from raydrd.methods.objectives import Contrastive, Distil, Duels, Losses, MarginMSE, Ordered
from raydrd.models.batching import SpecialTokens
from raydrd.models.rerankers import has_head, load_reranker, make_reranker, save_reranker
from raydrd.spine.parts import Parts, TokenReader, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import LISTS, TOKENS
from raydrd.training import checkpoint
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.loop import train_loop
from raydrd.training.plan import TrainConfig
from raydrd.training.sources import ListExamples
from raydrd.training.step import Step
from raydrd.training.texts import Texts
from tests.worlds import World, tiny_cross_encoder, tiny_encoder, tiny_tokenizer, toy_collection

CPU = torch.device("cpu")
QUERIES, WIDTH, MAX_LENGTH = 24, 6, 40


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """Tokens of the toy world, and its training lists: a relevant passage, then five of other subjects."""
    home = tmp_path_factory.mktemp("rerankers")
    world = toy_collection(home / "data")
    tokenizer, rng = tiny_tokenizer(), np.random.default_rng(0)
    asked = {q: t for q, t in world.queries.items() if q in world.qrels["train"]}
    for role, texts in (("query", asked), ("passage", world.passages)):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.values()]
        table = pa.table([pa.array(ids, TOKENS.field(0).type)], schema=TOKENS)
        Folder.of(home / role).write_arrow(part_name(0, len(ids), "arrow"), table)
    rows, lists = {d: n for n, d in enumerate(world.passages)}, []
    for number, query in enumerate(asked):
        other = [d for d in world.passages if d not in world.qrels["train"][query]]
        docs = [next(iter(world.qrels["train"][query])), *rng.permutation(other)[: WIDTH - 1]]
        scores = [5.0 + number % 3, *rng.standard_normal(WIDTH - 1)]
        lists.append(
            {
                "query_row": number,
                "doc_rows": [rows[d] for d in docs],
                "labels": [1.0 / (n + 1) for n in range(WIDTH)],
                "teacher_scores": scores,
                "flags": [POSITIVE] + [0] * (WIDTH - 1),
                "relevant": [rows[docs[0]]],
                "confidence": 0.5,
                **{name: [] for name in ("anchor_scores", "pair_left", "pair_right", "pair_p")},
            }
        )
    Folder.of(home / "lists").write_table(part_name(0, len(lists), "parquet"), pa.Table.from_pylist(lists, schema=LISTS))
    return home, world


def parts(home: Path, name: str) -> Parts:
    folder = Folder.of(home / name)
    return Parts.of(folder, list(folder.files()))


def make_job(toys: tuple[Path, World], home: Path, *, form: Any = "pairs", dropout: float = 0.0, **changes: Any) -> Job:
    if not (home / "model").exists():
        tiny_cross_encoder(home / "model", dropout=dropout)
    tokens: Any = {role: parts(toys[0], role) for role in ("query", "passage")}
    objective = Duels() if form == "duels" else Losses(terms=(Contrastive(in_batch=False),))
    numbers = {"learning_rate": 3e-3, "train_batch_size": 6, "max_steps": 6, **changes.pop("config", {})}
    values: dict[str, Any] = {
        "start": Folder.of(home / "model"),
        "examples": ListExamples(lists=parts(toys[0], "lists"), tokens=tokens, form=form, group=changes.pop("group", None)),
        "objective": objective,
        "config": TrainConfig(**numbers),
        "precision": "fp32",
        "scratch": Folder.of(home / "scratch"),
        "out": Folder.of(home / "out"),
        "per_device": None,
        "tokens_per_batch": None,
        "save_seconds": 1e9,
        "max_length": MAX_LENGTH,
    }
    return Job(**{**values, **changes})


def weights(job: Job) -> dict[str, Tensor]:
    return load_file(job.out.local("model/model.safetensors"))


def gradients(job: Job) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and losses of the first step, by the loop's own parts."""
    path = job.start.local_folder()
    model = load_reranker(path).train()
    readers = {role: TokenReader(found) for role, found in job.examples.tokens.items()}
    texts = Texts(path, None, readers, job.tokens_per_batch or 4096, MAX_LENGTH)
    losses = Step(job, Alone(), CPU, model, texts).backward(job.examples.open(), np.arange(job.config.train_batch_size))
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, losses


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pairs", "duels"])
def test_a_step_is_the_same_however_it_is_cut(toys: tuple[Path, World], tmp_path: Path, form: str) -> None:
    objective = None if form == "duels" else Losses(terms=(Contrastive(in_batch=False), Distil(), MarginMSE(), Ordered()))
    job = make_job(toys, tmp_path, form=form)
    job = replace(job, objective=objective or job.objective)
    whole, losses = gradients(job)
    assert max(g.abs().max() for g in whole.values()) > 1e-3 and all(v > 0 for v in losses.values())
    for per_device, budget in ((1, None), (4, None), (None, 60)):
        cut, cut_losses = gradients(replace(job, per_device=per_device, tokens_per_batch=budget))
        assert losses == pytest.approx(cut_losses, rel=1e-5)
        for name, grad in whole.items():
            torch.testing.assert_close(cut[name], grad, atol=2e-6, rtol=1e-5)


def test_a_step_of_pairs_is_a_slow_loop_over_the_tokenizers_own_pairs(toys: tuple[Path, World], tmp_path: Path) -> None:
    """The loss from texts, by transformers alone: listwise cross-entropy over each query's passages."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    job = make_job(toys, tmp_path)
    found, losses = gradients(job)
    path = job.start.local_folder()
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path).train(), AutoTokenizer.from_pretrained(path)
    queries = [text for q, text in toys[1].queries.items() if q in toys[1].qrels["train"]]
    passages = list(toys[1].passages.values())
    total = torch.zeros(())
    for row in parts(toys[0], "lists").slice(0, 6).to_pylist():
        texts = [(queries[row["query_row"]], passages[d]) for d in row["doc_rows"]]
        logits = [
            model(**tokenizer(q, p, return_tensors="pt", truncation=True, max_length=MAX_LENGTH)).logits[0, 0] for q, p in texts
        ]
        total = total - torch.log_softmax(torch.stack(logits), 0)[0]
    (total / 6).backward()
    assert losses == {"contrastive": pytest.approx(total.item() / 6, rel=1e-5)}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[f"body.{name}"], parameter.grad, atol=5e-6, rtol=1e-4)


def test_a_step_of_duels_reads_both_passages_after_the_query(toys: tuple[Path, World], tmp_path: Path) -> None:
    job = make_job(toys, tmp_path, form="duels")
    source, readers = job.examples.open(), {role: TokenReader(found) for role, found in job.examples.tokens.items()}
    batch = source.batch(np.arange(6))
    rows, p = batch.rows["duel"], batch.p_P  # type: ignore[union-attr]
    assert rows.shape == (6 * (WIDTH - 1), 3)
    model = load_reranker(job.start.local_folder()).train()
    special = SpecialTokens.of(tiny_tokenizer())
    logits = []
    for q, a, b in rows.tolist():
        (query,), (one, other) = readers["query"].take(np.array([q])), readers["passage"].take(np.array([a, b]))
        logits.append(model([("duel", special.model_inputs([special.duel(query, one, other, MAX_LENGTH)]))])[0][0, 0])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.stack(logits), p)
    found, losses = gradients(job)
    loss.backward()
    assert losses == {"duels": pytest.approx(loss.item(), rel=1e-5)}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("form", ["pairs", "duels"])
def test_a_cross_encoder_learns_and_loads_in_sentence_transformers(toys: tuple[Path, World], tmp_path: Path, form: str) -> None:
    from sentence_transformers import CrossEncoder

    # Which of two passages fits is harder to see than which fits better alone.
    steps = {"pairs": {"max_steps": 30}, "duels": {"max_steps": 80, "train_batch_size": 12}}[form]
    job = make_job(toys, tmp_path, form=form, config=steps)
    train_loop(job, Alone(), CPU)
    curve = job.out.read_json("curve.json")
    assert [row[0] for row in curve] == list(range(1, steps["max_steps"] + 1))
    first, last = (float(np.mean([row[1] for row in rows])) for rows in (curve[:4], curve[-4:]))
    # Knowing nothing: one of six, and a coin.
    assert first == pytest.approx(np.log(WIDTH) if form == "pairs" else np.log(2), abs=0.25)
    assert last < 0.7 * first
    assert job.out.read_json("about.json")["layers"] == 2
    saved = Path(job.out.local("model"))
    assert has_head(saved)
    loaded, own = CrossEncoder(str(saved), device="cpu", max_length=MAX_LENGTH), load_reranker(saved)
    texts = [("the wave tide of", "harbour and sail reef gull"), ("judge court", "oven flour")]
    inputs = loaded.tokenizer(*zip(*texts, strict=True), padding=True, return_tensors="pt")
    with torch.no_grad():
        (ours,) = own([("pair", dict(inputs))])
    theirs = loaded.predict(texts, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(np.asarray(theirs).ravel(), ours[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("form", ["pairs", "duels"])
@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_that_dies_goes_on_to_the_very_same_weights(
    toys: tuple[Path, World], tmp_path: Path, form: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = make_job(toys, tmp_path / "calm", form=form, dropout=0.1, group=4)
    train_loop(calm, Alone(), CPU)
    hit = make_job(toys, tmp_path / "hit", form=form, dropout=0.1, group=4, save_seconds=0.0)
    backward, done = Step.backward, []

    def dies(self: Step, *args: Any, **more: Any) -> dict[str, float]:
        done.append(1)
        if len(done) == stop + 1:
            raise MemoryError("killed")
        return backward(self, *args, **more)

    monkeypatch.setattr(Step, "backward", dies)
    with pytest.raises(MemoryError):
        train_loop(hit, Alone(), CPU)
    assert not hit.out.exists("curve.json") and checkpoint.latest(hit.scratch) == stop
    torch.manual_seed(99)
    train_loop(hit, Alone(), CPU)
    assert len(done) == 6 + 1  # no step was done twice
    assert all(torch.equal(weights(calm)[n], weights(hit)[n]) for n in weights(calm))
    assert calm.out.read_json("curve.json") == hit.out.read_json("curve.json")
    begin = load_file(calm.start.local("model.safetensors"))
    assert weights(calm).keys() == begin.keys()
    assert max(float((weights(calm)[n] - begin[n]).abs().max()) for n in begin) > 1e-3


def test_checkpointed_activations_and_dropout_of_the_config(toys: tuple[Path, World], tmp_path: Path) -> None:
    found = []
    for name, numbers in (("a", {}), ("b", {"gradient_checkpointing": True}), ("c", {"dropout": 0.0})):
        job = make_job(toys, tmp_path / name, dropout=0.2 if name == "c" else 0.0, config={"max_steps": 2, **numbers})
        train_loop(job, Alone(), CPU)
        found.append(weights(job))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0)


# -- folders ------------------------------------------------------------------------------------------------


def test_an_encoder_becomes_a_reranker_with_a_new_head(tmp_path: Path) -> None:
    start = tiny_encoder(tmp_path / "encoder", layers=4)
    assert not has_head(start)
    made = [make_reranker(start, layers=2, seed=seed) for seed in (1, 1, 2)]
    assert made[0].body.config.num_hidden_layers == 2 and made[0].body.config.num_labels == 1 and made[0].width == 1
    heads = [one.body.classifier.weight for one in made]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    before = load_file(start / "model.safetensors")["encoder.layer.3.output.dense.weight"]
    assert torch.equal(made[0].body.bert.encoder.layer[1].output.dense.weight, before)  # the last layer is kept
    assert not any(part.training for part in made[0].modules())
    save_reranker(made[0], tmp_path / "saved", tokenizer_from=start)
    again = load_reranker(tmp_path / "saved")
    assert has_head(tmp_path / "saved") and (tmp_path / "saved" / "tokenizer.json").exists()
    for (name, a), b in zip(made[0].named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(InputError, match=r"teacher\.layers: 9: the model has 4 layers"):
        make_reranker(start, layers=9, seed=1)


def test_a_new_head_does_not_disturb_other_draws(tmp_path: Path) -> None:
    start = tiny_encoder(tmp_path / "encoder")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_reranker(start, layers=None, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_classifier_with_several_outputs_is_no_reranker(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = BertConfig(vocab_size=20, **shape)
    config.num_labels = 3
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="it has 3 outputs, a reranker has 1"):
        load_reranker(tmp_path)
