"""What kind of collection a folder holds, told from the names in it."""

from __future__ import annotations

import fnmatch

from raydrd.data.layout import available, names_in
from raydrd.data.spec import Data
from raydrd.errors import InputError

PARQUET_CORPUS = ("corpus.parquet", "corpus/*.parquet", "corpus-*.parquet")


def guess(path: str) -> Data:
    """The `Data` to read the folder with default names; train and dev are null if it has other splits only.

    Raises:
        InputError: no such folder, or none of the known names in it.
    """
    names = names_in(path)
    plain = {name.removesuffix(".gz") for name in names}
    if "corpus.jsonl" in plain:
        data = Data(source="beir", path=path)
    elif "collection.tsv" in plain:
        data = Data(source="msmarco", path=path)
    elif any(fnmatch.filter(names, pattern) for pattern in PARQUET_CORPUS):
        data = Data(source="parquet", path=path)
    else:
        top = ", ".join(sorted({name.partition("/")[0] for name in names})[:12]) or "nothing"
        looked_for = f"corpus.jsonl (beir), collection.tsv (msmarco), {' or '.join(PARQUET_CORPUS)} (parquet)"
        raise InputError(f"{path}: no corpus here; looked for {looked_for}; the folder holds {top}")
    there = available(data, names)
    if there and "train" not in there:
        return data.model_copy(update={"train_split": None, "dev_split": "dev" if "dev" in there else None})
    return data
