"""tokenize: each text once per tokenizer, into memory-mapped Arrow files that every later stage reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.errors import InputError
from raydrd.methods.dark import MASK
from raydrd.spine.parts import Parts, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, stage
from raydrd.spine.tables import TOKENS
from raydrd.stages.load import table
from raydrd.stages.shards import pending

# Longer texts are cut here; every maximum length in use must be at most this (checked by `max_length` users).
MOST_TOKENS = 512
# Below this many texts an actor's start takes longer than the work.
FEW_TEXTS = 20_000
# A tokenizer keeps some 12 kB for each text of a call.
TEXTS_AT_ONCE = 4096


class Tokenizer:
    """Texts of a part -> ids without special tokens, cut to `MOST_TOKENS`."""

    def __init__(self, *, texts: Parts, out: Folder, model: Folder, subfolder: str, prompt: str, lowercase: bool) -> None:
        from transformers import AutoTokenizer

        path = model.local_folder() / subfolder
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        self.tokenizer.model_max_length = int(1e30)  # truncation is ours: no warning about long texts
        self.texts, self.out, self.prompt, self.lowercase = texts, out, prompt, lowercase

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        texts = self.texts.slice(shard["lo"], shard["hi"], ["text"])["text"].to_pylist()
        if self.lowercase:
            texts = [text.lower() for text in texts]
        if any(MASK in text for text in texts):
            if self.tokenizer.mask_token is None:
                raise InputError("dark.mask: this model's tokenizer has no mask token; write dark.mask=delete")
            texts = [text.replace(MASK, self.tokenizer.mask_token) for text in texts]
        lengths = np.zeros(len(texts), dtype=np.int64)
        found = [np.empty(0, np.int32)]
        for lo, hi in ranges(len(texts), TEXTS_AT_ONCE):
            batch = self.tokenizer(
                [self.prompt + text for text in texts[lo:hi]],
                add_special_tokens=False,
                truncation=True,
                max_length=MOST_TOKENS,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            lengths[lo:hi] = [len(ids) for ids in batch["input_ids"]]
            found += [np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"]]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        values = np.concatenate(found)
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))
        self.out.write_arrow(shard["name"], pa.table([column], schema=TOKENS))
        return {"tokens": int(lengths.sum())}


@stage(version=1)
def tokenize(
    work: Work, *, data: Artifact, name: str, tokenizer: Located, prompt: str = "", lowercase: bool = False
) -> dict[str, Any]:
    """Token ids of the texts of table `name`; `tokenizer` is known by the digest of its rules."""
    texts = table(data, name)
    model, subfolder = tokenizer.where
    shards = pending(work, texts.rows, 50_000)
    work.cluster.map(
        Tokenizer,
        {
            "texts": texts,
            "out": work.shards,
            "model": model,
            "subfolder": subfolder,
            "prompt": prompt,
            "lowercase": lowercase,
        },
        shards,
        label=work.label,
        unit="texts",
        marks=work.shards / "attempts",
        inline=texts.rows <= FEW_TEXTS,
        models=False,
    )
    return {"rows": texts.rows, "unit": "texts"}
