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

A dense retriever distilled with raydrd ({report["recipe"]}) from {_teacher(config["teacher"])} into
`{config["student"]["model"]}`{_cut(config)}. {student["description"]}; similarity: {layout.similarity}.
{_method(report)}
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("model")
queries = model.encode_query(["your question"])
passages = model.encode_document(["a passage", "another passage"])
print(model.similarity(queries, passages))
```

## Measured

{report["queries"]} test queries, {report["data"]["passages"]:,} passages, exact search; encoding speed of one worker
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


def _teacher(teacher: dict[str, Any]) -> str:
    """Its model, those of an ensemble's members, or that there was none."""
    models = [one["model"] for one in teacher.get("members") or [teacher] if one.get("model")]
    return " + ".join(f"`{model}`" for model in models) or "ready-made scores"


def _method(report: dict[str, Any]) -> str:
    """The recipe's own summary, and whether a paper's program was there to follow; reports of old runs have none."""
    if not report.get("method"):
        return ""
    summary, source, _ = str(report["method"]).partition(FROM_ABSTRACT)
    after = " It is implemented from the abstract: the paper's own program was not to be had." if source else ""
    return f"\nMethod: {summary}.{after}\n"


def _cut(config: dict[str, Any]) -> str:
    layers = config["student"].get("layers")
    if layers is None:
        return ""
    return f", cut to {layers} layers" if isinstance(layers, int) else f", cut to layers {layers}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
