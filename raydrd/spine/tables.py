"""The tables that flow between stages: Arrow schemas, and the check at each door.

A text is named by its *row* in its own table (corpus, or one split of queries): rows are small, dense and
ordered, so that tokens, vectors and candidates line up without a join. Ids come back in when people read.
"""

from __future__ import annotations

import pyarrow as pa

CORPUS = pa.schema([("doc_id", pa.string()), ("text", pa.string())])

# One split of queries. `doc_rows` are the judged passages (rows of the corpus), `grades` their relevance;
# both are empty for an unlabelled query.
QUERIES = pa.schema(
    [
        ("query_id", pa.string()),
        ("text", pa.string()),
        ("doc_rows", pa.list_(pa.int64())),
        ("grades", pa.list_(pa.int32())),
    ]
)

# One row per text; ids without special tokens, so that any template (single, pair, truncated) can be built.
TOKENS = pa.schema([("ids", pa.list_(pa.int32()))])

# One row per query: passages by descending score, ties by ascending row.
CANDIDATES = pa.schema(
    [
        ("query_row", pa.int64()),
        ("doc_rows", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float32())),
    ]
)

# Candidates with the teacher's raw logits beside them.
SCORED = CANDIDATES.append(pa.field("teacher_scores", pa.list_(pa.float32())))

# Pairs of one query's candidates; `probabilities` are P(left is better than right), added when a teacher has compared them.
PAIRS = pa.schema(
    [
        ("query_row", pa.int64()),
        ("left", pa.list_(pa.int64())),
        ("right", pa.list_(pa.int64())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)

# Passages written for one query (ADAM's dark examples), as rows after the corpus' last one, best-known facts beside them.
DARK = pa.schema(
    [
        ("query_row", pa.int64()),
        ("doc_rows", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float32())),
        ("kinds", pa.list_(pa.string())),
        ("recipes", pa.list_(pa.string())),
    ]
)

# What training reads: one list a row. Only the order of `labels` has a meaning; `flags` see raydrd.methods.lists.
LISTS = pa.schema(
    [
        ("query_row", pa.int64()),
        ("doc_rows", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.float32())),
        ("teacher_scores", pa.list_(pa.float32())),  # NaN: the teacher never saw it
        ("flags", pa.list_(pa.int8())),
        ("anchor_scores", pa.list_(pa.float32())),  # of the frozen student before this stage; empty: no anchor
        ("relevant", pa.list_(pa.int64())),  # every judged positive of the query, in the list or not
        ("confidence", pa.float32()),  # of the teacher in the first labelled positive; NaN: there is none
        ("pair_left", pa.list_(pa.int32())),  # places in this list
        ("pair_right", pa.list_(pa.int32())),
        ("pair_p", pa.list_(pa.float32())),
    ]
)


def vectors(width: int, dtype: str) -> pa.Schema:
    """One row per text: a fixed-size list of `width` float16 or float32 values."""
    value = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    return pa.schema([("vector", pa.list_(value, width))])


def check(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The table, cast to the schema's exact types.

    Raises:
        ValueError: a column is missing or has another type; names the place, the column, both types.
    """
    for field in schema:
        if field.name not in table.column_names:
            raise ValueError(f"{where}: column {field.name!r} is missing; columns are {table.column_names}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(f"{where}: {error}; expected {schema}") from error
