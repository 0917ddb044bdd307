"""Students that are no BERT: decoder-only encoders by their last token, ModernBERT; prefixes, checkpointing, cutting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from raydrd.models import devices
from raydrd.models.batching import SpecialTokens
from raydrd.models.encoders import load_biencoder, pool
from raydrd.models.layout import read_layout
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from raydrd.stages.adopt import Student, adopt, layout_of, located, model_folder, wanted_layout
from raydrd.stages.scorers import CrossEncoderScorer
from raydrd.training.comm import Alone
from raydrd.training.loop import set_dropout, train_loop
from tests.encoder_families import CAUSAL, FAMILIES, family_model
from tests.recipes import SCALE, assert_found_again, run_toy, settings, steps
from tests.stage_inputs import embed_all, matrix_of, open_data, open_model, whole_texts
from tests.training_jobs import CPU, make_job, weights
from tests.worlds import tiny_encoder

ASK = "Instruct: find the passage that answers the query\nQuery: "


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {kind: family_model(kind, home / kind) for kind in FAMILIES}


@pytest.mark.parametrize("kind", FAMILIES)
def test_vectors_are_those_of_the_plain_model_and_of_sentence_transformers(
    store: Store, toy: Path, folders: dict[str, Path], kind: str
) -> None:
    from sentence_transformers import SentenceTransformer

    data = open_data(store, toy / "data")
    model = open_model(store, folders[kind], normalize=True, query_prompt=ASK, query_max_len=72, passage_max_len=72)
    assert layout_of(model).pooling == ("lasttoken" if kind in CAUSAL else "mean")
    found = {name: matrix_of(embed_all(store, model, data, name, "float32")) for name in ("queries/train", "corpus")}
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    body = AutoModel.from_pretrained(folders[kind]).eval()
    for name, prompt, limit in (("queries/train", ASK, 72), ("corpus", "", 72)):
        texts = whole_texts(data, name)
        for text, vector in list(zip(texts, found[name], strict=True))[:8]:
            ids = tokenizer(prompt + text, truncation=True, max_length=limit, return_tensors="pt")["input_ids"]
            with torch.inference_mode():  # one text alone, so nothing is padded
                states = body(input_ids=ids).last_hidden_state[0]
            own = states[-1] if kind in CAUSAL else states.mean(0)
            np.testing.assert_allclose(vector, nn.functional.normalize(own, dim=0).numpy(), atol=2e-5)
    assert np.ptp(found["corpus"] @ found["queries/train"].T) > 0.2
    shipped = SentenceTransformer(str(model_folder(model).local_folder()), device="cpu")
    for name, encode in (("queries/train", shipped.encode_query), ("corpus", shipped.encode_document)):
        np.testing.assert_allclose(encode(whole_texts(data, name)), found[name], atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_wherever_the_padding_stands(side: str) -> None:
    states = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2)
    lengths = torch.tensor([4, 2, 1])
    at = torch.arange(4)
    mask = (at < lengths[:, None]) if side == "right" else (at >= 4 - lengths[:, None])
    found = pool(states, mask.long(), "lasttoken")
    last = lengths - 1 if side == "right" else torch.tensor([3, 3, 3])
    assert torch.equal(found, states[torch.arange(3), last])


def test_a_tokenizer_without_padding_gets_its_end_token(folders: dict[str, Path], store: Store) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    assert tokenizer.pad_token_id is None
    special = SpecialTokens.of(tokenizer)
    assert special.pad_id == tokenizer.eos_token_id and special.single_overhead == 2
    model = open_model(store, folders["llama"])
    told = json.loads((model_folder(model).local_folder() / "tokenizer_config.json").read_text())
    assert told["pad_token"] == told["eos_token"] == "</s>"


def counted(forward: Any, calls: list[int]) -> Any:
    def counting(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return forward(*args, **more)

    return counting


@pytest.mark.parametrize("kind", FAMILIES)
def test_checkpointing_gradients_changes_nothing(tmp_path: Path, folders: dict[str, Path], kind: str) -> None:
    layer = type(AutoModel.from_pretrained(folders[kind]).layers[0].mlp)
    found, times = [], list[int]()
    for number, on in enumerate((False, True)):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "model").symlink_to(folders[kind])
        job = make_job(home, config={"gradient_checkpointing": on, "dropout": 0.0})
        calls: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer, "forward", counted(layer.forward, calls))
            train_loop(job, Alone(), CPU)
        times.append(len(calls))
        found.append((job.out.read_json("curve.json"), weights(job)))
    assert times[1] == 2 * times[0] > 0  # each layer once more, on the way back
    np.testing.assert_allclose([r[1] for r in found[0][0]], [r[1] for r in found[1][0]], rtol=1e-4)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_cut_model_is_saved_as_it_computes(store: Store, tmp_path: Path, kind: str) -> None:
    folder = family_model(kind, tmp_path / kind, layers=4)
    source = located(Student(model=str(folder)))
    layout = wanted_layout(Student(model=str(folder)), read_layout(source.where))
    cut = store.run(adopt, source=source, layout=layout, layers=[0, 3])
    assert cut.metrics["layers"] == 2
    body = AutoModel.from_pretrained(folder).eval()
    kept = nn.ModuleList([body.layers[0], body.layers[3]])
    body.layers, body.config.num_hidden_layers = kept, 2
    if getattr(body.config, "layer_types", None):
        body.config.layer_types = [body.config.layer_types[0], body.config.layer_types[3]]
    ids, mask = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]]), torch.ones(1, 8, dtype=torch.long)
    made = load_biencoder(model_folder(cut).local_folder()).query
    with torch.inference_mode():
        expected = body(
            input_ids=ids, attention_mask=mask, **({"use_cache": False} if kind in CAUSAL else {})
        ).last_hidden_state
        torch.testing.assert_close(made.states(ids, mask), expected)


@pytest.mark.parametrize("kind", ["qwen3", "modernbert"])
def test_a_student_of_another_family_learns_and_ships(toy: Path, tmp_path: Path, kind: str) -> None:
    """The whole run; the exported folder is checked against sentence-transformers at its end."""
    student = {"model": str(family_model(kind, tmp_path / kind, by=1)), "normalize": True, "query_prompt": ASK}
    step = {"lists": {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10}, "train": steps(40, 3.0e-3)}
    report = run_toy(tmp_path, settings(toy, "cldrd", student=student, curriculum=[step], loss=SCALE))
    systems = {name: one["nDCG@10"] for name, one in report["systems"].items()}
    assert systems["student"] > systems["student_before"] + 0.1
    assert report["provenance"]["export_difference"] < 1e-3
    assert_found_again(report, tmp_path)


# -- attention without padding ------------------------------------------------------------------------


class Body(nn.Module):
    _supports_flash_attn = True
    used = ""

    def set_attn_implementation(self, name: str) -> None:
        self.used = name


def test_padding_is_skipped_where_all_that_needs_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(devices, "find_spec", lambda name: name if name == "flash_attn" else None)
    body = Body()
    assert devices.skip_padding(body, cuda, "bf16") and body.used == "flash_attention_2"
    for device, precision in ((cpu, "bf16"), (cuda, "fp32")):
        body = Body()
        assert not devices.skip_padding(body, device, precision) and body.used == ""  # type: ignore[arg-type]
    body = Body()
    body._supports_flash_attn = False
    assert not devices.skip_padding(body, cuda, "bf16") and body.used == ""
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert not devices.skip_padding(Body(), cuda, "bf16")


def test_a_cross_encoder_is_asked_for_it_too(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(devices, "skip_padding", lambda *given: asked.append(given))
    tokens = make_job(tmp_path).examples.tokens
    scorer = CrossEncoderScorer(
        Folder.of(toy / "reranker"), queries=tokens["query"], passages=tokens["passage"], max_length=64, precision="fp32",
        tokens_per_batch=None,
    )  # fmt: skip
    assert asked == [(scorer.model, scorer.device, "fp32")]


@pytest.mark.parametrize("kind", [*FAMILIES, "bert"])
def test_dropout_of_the_config_reaches_rates_that_are_no_modules(kind: str, tmp_path: Path) -> None:
    model = load_biencoder(family_model(kind, tmp_path) if kind != "bert" else tiny_encoder(tmp_path, dropout=0.2))
    body = model.bodies()[0]
    body.set_attn_implementation("eager")
    ids = torch.arange(3, 19)[None]

    def read() -> torch.Tensor:
        return body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    model.train()
    set_dropout(model, 0.0)
    calm = read()
    assert torch.equal(read(), calm)
    set_dropout(model, 0.4)
    assert not torch.allclose(read(), read())
    model.eval()
    assert torch.allclose(read(), calm, atol=1e-6)


def test_modernbert_offers_it() -> None:
    """What the function above asks for is what transformers calls it, for the families that have such attention."""
    from transformers import LlamaModel, ModernBertModel, Qwen3Model

    assert all(kind._supports_flash_attn for kind in (ModernBertModel, LlamaModel, Qwen3Model))
