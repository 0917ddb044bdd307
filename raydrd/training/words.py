"""MD2PR's word level inside a step: a frozen cross-encoder's attention beside the student's token states.

The maps are made on the fly: stored, they would be the largest thing of the whole run (MS MARCO: 66 GB for one
direction in half precision).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.losses import Loss
from raydrd.methods.objectives import ListBatch
from raydrd.methods.wordmaps import TeacherMaps, WordMaps, content_ids, content_states, make_projection, student_maps, word_loss
from raydrd.models.batching import SpecialTokens
from raydrd.models.encoders import BiEncoder
from raydrd.models.late import LateEncoder, Reading
from raydrd.models.layout import Layout
from raydrd.spine.parts import TokenReader
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder


@dataclass(frozen=True)
class WordTeacher:
    """A value, so that it travels: the rule, and the folder of the frozen cross-encoder."""

    rule: WordMaps
    model: Folder
    seed: int


def chosen(batch: ListBatch, negatives: int) -> Tensor:
    """(query, column) of the pairs whose maps are matched: each positive and its best-scored surviving negatives."""
    column_Q, has_Q = batch.first_positive("either")
    barred_QN = batch.flagged(POSITIVE) | batch.flagged(DARK) | batch.flagged(SUSPECT) | batch.teacher_QN.isnan()
    barred_QN = (barred_QN | ~batch.mask_QN).scatter(1, column_Q[:, None], value=True)
    scores_QN = batch.teacher_QN.masked_fill(barred_QN, -torch.inf)
    best_QK = scores_QN.argsort(dim=1, descending=True, stable=True)[:, :negatives]
    places_QC = torch.cat([column_Q[:, None], best_QK], dim=1)
    kept_QC = torch.cat([has_Q[:, None], ~barred_QN.gather(1, best_QK)], dim=1)
    query_P, at_P = kept_QC.nonzero(as_tuple=True)
    return torch.stack([query_P, places_QC[query_P, at_P]], dim=1)


class Words:
    """Teacher maps, and the projection that is trained and left behind."""

    def __init__(
        self,
        setup: WordTeacher,
        *,
        model: BiEncoder | LateEncoder,
        special: SpecialTokens,
        layout: Layout,
        tokens: dict[str, TokenReader],
        precision: Precision,
        device: torch.device,
        reading: Reading | None = None,
    ) -> None:
        self.reading = reading
        self.rule, self.model, self.special, self.layout, self.tokens = setup.rule, model, special, layout, tokens
        self.precision, self.device = precision, device
        self.teacher = TeacherMaps(setup.model.local_folder(), layers=setup.rule.layers, precision=precision, device=device)
        width = int(model.passage.backbone.config.hidden_size)
        projection = make_projection(width, setup.rule, setup.seed)
        self.projection: nn.Linear | None = projection.to(device) if projection is not None else None

    def loss(self, batch: ListBatch) -> Loss:
        """Summed word loss of these lists, with its graph, and the number of pairs it is summed over."""
        pairs_P2 = chosen(batch, self.rule.negatives).cpu()
        if not len(pairs_P2):
            return torch.zeros((), device=self.device, requires_grad=True), 0.0
        query_rows = batch.rows["query"].cpu().numpy()[pairs_P2[:, 0].numpy()]
        doc_rows = batch.doc_rows_QN.cpu().numpy()[tuple(pairs_P2.T.numpy())]
        ids = {
            role: content_ids(self.tokens[role].take(rows), self.special, self._limit(role))
            for role, rows in (("query", query_rows), ("passage", doc_rows))
        }
        maps = self.teacher(ids["query"], ids["passage"])
        query_states, query_mask = self._states("query", ids["query"])
        passage_states, passage_mask = self._states("passage", ids["passage"])
        logits_BQP = student_maps(query_states, passage_states, self.projection)
        return word_loss(
            maps.query_to_passage_BQP,
            maps.passage_to_query_BPQ,
            logits_BQP,
            query_mask,
            passage_mask,
            row_weights=self.rule.row_weights,
            directions=self.rule.directions,
        )

    def _marked(self, role: str) -> bool:
        return self.reading is not None and self.reading.markers[role] is not None

    def _limit(self, role: str) -> int:
        """Tokens that a text is cut at, without a late-interaction student's marker."""
        return self.layout.max_len(role) - self._marked(role)

    def _states(self, role: str, ids: list[Any]) -> tuple[Tensor, Tensor]:
        texts = [np.asarray(one, dtype=np.int32) for one in ids]
        if self.reading is not None:
            sequences = [self.reading.single(role, one) for one in texts]
        else:
            sequences = [self.special.single(one, self._limit(role)) for one in texts]
        inputs = self.special.model_inputs(sequences)
        mask = inputs["attention_mask"].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            states = self.model.tower(role).states(inputs["input_ids"].to(self.device), mask)
        if self._marked(role):  # it is read, and no word
            states, mask = torch.cat([states[:, :1], states[:, 2:]], dim=1), mask[:, 1:]
        return content_states(states, mask, self.special)
