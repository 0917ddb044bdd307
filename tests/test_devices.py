"""How workers compute: bf16 by stored weights is autocast's bf16, and a logit is never rounded to it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from raydrd.models.devices import inference, prepare
from raydrd.models.encoders import load_tower
from raydrd.models.layout import read_layout

CPU = torch.device("cpu")


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 90, (6, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([20, 17, 9, 20, 3, 12])[:, None]).long()
    return ids, mask


def test_stored_bf16_weights_give_what_autocast_gives(toy: Path) -> None:
    tower = load_tower(toy / "student", read_layout(toy / "student"), "passage")
    ids, mask = _batch()
    with inference(CPU, "fp32"):
        full = tower(ids, mask)
    with inference(CPU, "bf16"):
        cast = tower(ids, mask)
        prepare(tower.backbone, "bf16")
        stored = tower(ids, mask)
    assert torch.equal(stored, cast)
    assert not torch.equal(stored, full)
    assert stored.dtype == torch.float32
    assert (stored * full).sum(1).min() > 0.999


def test_fp32_leaves_the_model_alone(toy: Path) -> None:
    tower = load_tower(toy / "student", read_layout(toy / "student"), "passage")
    prepare(tower.backbone, "fp32")
    assert {p.dtype for p in tower.parameters()} == {torch.float32}


def test_exact_modules_do_not_round_a_logit_to_bf16(toy: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(toy / "reranker").eval()
    ids, mask = _batch()
    with inference(CPU, "bf16"):
        rounded = model(input_ids=ids, attention_mask=mask).logits
    prepare(model, "bf16", exact=(model.classifier,))
    with inference(CPU, "bf16"):
        exact = model(input_ids=ids, attention_mask=mask).logits
    assert rounded.dtype == torch.bfloat16
    assert exact.dtype == torch.float32
    assert not torch.equal(exact, exact.bfloat16().float())
    torch.testing.assert_close(exact, rounded.float(), atol=0.01, rtol=0.02)
