"""The model card: what the student is, what it was measured at, and how it was made."""

from __future__ import annotations

from typing import Any

import yaml

from raydrd.models.layout import Layout

FROM_ABSTRACT = "; from the abstract"  # how the summary of such a recipe ends


def model_card(report: dict[str, Any], layout: Layout) -> str:
    """README.md of a model folder, with the front matter that hubs read."""
    config, systems = report["config"], report["systems"]
    student = systems["student"]
    metrics = [name for name in student if "@" in name]
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": config["student"]["model"],
        "tags": ["sentence-transformers", "feature-extraction", "distillation", f"raydrd:{report['recipe']}"],
        "model-index": [
            {
                "name": report["name"],
                "results": [
                    {
                        "task": {"type": "retrieval"},
                        "dataset": {"name": config["data"].get("path") or config["data"]["source"], "type": "retrieval"},
                        "metrics": [{"type": name, "value": round(student[name], 4)} for name in metrics],
                    }
                ],
            }
        ],
    }
    head = "| | " + " | ".join(metrics) + " | passages/s | MB |\n|---|" + "---|" * (len(metrics) + 2) + "\n"
    names = {"bm25": "BM25", "student_before": "student before", "teacher": "teacher", "student": "**this model**"}
    rows = "".join(
        f"| {names[key]} | "
        + " | ".join(f"{found[m]:.4f}" for m in metrics)
        + f" | {_number(found['passages_per_s'])} | {_number(found['size_mb'])} |\n"
        for key, found in systems.items()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---

# {report["name"]}

A {_what(config)} distilled with raydrd ({report["recipe"]}) from {_teacher(config["teacher"])} into
`{config["student"]["model"]}`{_cut(config)}. {student["description"]}; similarity: {_similarity(config, layout)}.
{_method(report)}
{_use(config, layout)}
{_widths(config)}
## Measured

{report["queries"]} test queries, {report["data"]["passages"]:,} passages, {_search(config)}; encoding speed of one worker
on {report["provenance"]["hardware"]}.

{head}{rows}
Queries are cut at {layout.query_max_len} tokens, passages at {layout.passage_max_len}. Largest difference to raydrd's own
float32 vectors: {report["provenance"]["export_difference"]:.1e}.

## Made from

- data: `{config["data"].get("path") or config["data"]["source"]}` (collection {report["provenance"]["data_digest"]})
- versions: {", ".join(f"{name} {version}" for name, version in report["provenance"]["versions"].items())}

<details><summary>configuration</summary>

```yaml
{yaml.safe_dump(config, sort_keys=False, allow_unicode=True).strip()}
```

</details>

## Limits

Measured on one collection; other domains, languages and longer texts were not. The licences of the base model, the
teacher and the data apply.
"""


_LATE = """```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("model")
queries = model.encode_query(["your question"])
passages = model.encode_document(["a passage", "another passage"])
print(model.similarity(queries, passages))
```
The folder is PyLate's: `pylate.models.ColBERT("model")` loads it too."""


def _kind(config: dict[str, Any]) -> str:
    return str(config["student"].get("kind", "single_vector"))


def _what(config: dict[str, Any]) -> str:
    names = {"single_vector": "dense retriever", "late_interaction": "late-interaction retriever (ColBERT)"}
    return names.get(_kind(config), "dense and late-interaction retriever in one")


def _similarity(config: dict[str, Any], layout: Layout) -> str:
    names = {"single_vector": layout.similarity, "late_interaction": "MaxSim"}
    return names.get(_kind(config), f"{layout.similarity} of one vector a text, MaxSim of one a token")


def _use(config: dict[str, Any], layout: Layout) -> str:
    """How to load it, as code."""
    if _kind(config) == "late_interaction":
        return _LATE
    one = f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("model"{_cut_at_loading(config)})
queries = model.encode_query(["your question"]{_unit(config, layout)})
passages = model.encode_document(["a passage", "another passage"]{_unit(config, layout)})
print(model.similarity(queries, passages))
```"""
    if _kind(config) == "single_vector":
        return one
    return f"""{one}
That is one vector a text. One a token, compared by MaxSim, comes from the same weights:
```python
from pylate import models

model = models.ColBERT("model/late_interaction")
queries = model.encode(["your question"], is_query=True)
passages = model.encode(["a passage", "another passage"], is_query=False)
```"""


def _teacher(teacher: dict[str, Any]) -> str:
    """Its model, those of an ensemble's or escalation's members, or that there was none."""
    several = teacher.get("members") or [teacher[name] for name in ("cheap", "expensive") if name in teacher]
    models = [one["model"] for one in several or [teacher] if one.get("model")]
    return " + ".join(f"`{model}`" for model in models) or "ready-made scores"


def _method(report: dict[str, Any]) -> str:
    """The recipe's own summary, and whether a paper's program was there to follow; reports of old runs have none."""
    if not report.get("method"):
        return ""
    summary, source, _ = str(report["method"]).partition(FROM_ABSTRACT)
    after = " It is implemented from the abstract: the paper's own program was not to be had." if source else ""
    return f"\nMethod: {summary}.{after}\n"


def _dim(config: dict[str, Any]) -> int | None:
    return (config.get("vectors") or {}).get("dim")


def _cut_at_loading(config: dict[str, Any]) -> str:
    return f", truncate_dim={_dim(config)}" if _dim(config) else ""


def _unit(config: dict[str, Any], layout: Layout) -> str:
    """Cut vectors are not of unit length until they are asked to be."""
    return ", normalize_embeddings=True" if _dim(config) and layout.normalize else ""


def _widths(config: dict[str, Any]) -> str:
    """Which first numbers of a vector are vectors too."""
    dims = config["student"].get("dims")
    if not dims:
        return ""
    kept = ", ".join(map(str, dims[1:]))
    return f"\nTrained so that the first {kept} of its {dims[0]} dimensions are vectors too (Matryoshka).\n"


def _search(config: dict[str, Any]) -> str:
    if _kind(config) != "single_vector":
        late = config["late"]
        whole = late["type"] == "float16" and late["candidates"] == "all"
        return (
            "exact MaxSim" if whole else f"MaxSim of {late['type']} vectors over {late['candidates']} candidates for this model"
        )
    kept = (config.get("vectors") or {}).get("type", "float32")
    return "exact search" if kept == "float32" else f"{kept} vectors for this model, exact search for the others"


def _cut(config: dict[str, Any]) -> str:
    layers = config["student"].get("layers")
    if layers is None:
        return ""
    return f", cut to {layers} layers" if isinstance(layers, int) else f", cut to layers {layers}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
