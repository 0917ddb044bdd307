"""Rows and units of work of every stage, from the sizes of the user's collection and what the sample shows."""

from __future__ import annotations

from collections.abc import Callable

from raydrd.outline import artifacts_in
from raydrd.planning.walk import DATA, Asked
from raydrd.spine.store import Artifact
from raydrd.stages.load import table
from raydrd.stages.score import mean_depth
from raydrd.stages.shards import parts_of
from raydrd.stages.sizes import MOST_QUERIES

TRAININGS = ("train", "imitate", "train_reranker")
# Of a stage's inputs, the one whose rows are its own.
_LIKE = ("candidates", "scored", "pairs", "lists", "cheap", "run", "members", "sources", "queries", "vectors")
ASIDE_BOTH_WAYS = 1.125  # duels a pair where only every eighth query's are asked in both orders


class Sizes:
    """Rows, depth and units by artifact. `shadow` gives what the sample made of one, where it made anything."""

    def __init__(self, asked: dict[str, Asked], data: Artifact, shadow: Callable[[Artifact], Artifact | None]) -> None:
        self.asked, self.shadow = asked, shadow
        self.passages = table(data, "corpus").rows
        self._rows: dict[str, int] = {}

    def rows(self, artifact: Artifact) -> int:
        """Rows of its table; updates of a training."""
        if artifact.id not in self._rows:
            step = self.asked[artifact.id]
            self._rows[artifact.id] = int(artifact.metrics["rows"]) if step.held else self._of(step)
        return self._rows[artifact.id]

    def _of(self, step: Asked) -> int:
        inputs = step.inputs
        match step.name:
            case "tokenize" | "bm25_search":
                return self.texts(inputs["data"], inputs["name"])
            case "bm25_index":
                return self.texts(inputs["data"], "corpus")
            case "embed" | "embed_tokens" | "embed_pooled":
                return self.rows(inputs["tokens"])
            case "build_index" | "learn_codec" if self._tokens_each(inputs["vectors"]):
                return round(self.rows(inputs["vectors"]) * self._tokens_each(inputs["vectors"]))
            case "evaluate":
                return self.texts(inputs["data"], inputs["name"])
            case "take_run":
                return table(inputs["data"], "candidates/train").rows
            case "take_scores":
                return self.texts(inputs["data"], "queries/train")
            case "assemble":
                return max(1, round(self.rows(inputs["scored"]) * self.kept(step)))
            case "train" | "train_reranker":
                return int(inputs["config"].steps(self.rows(inputs["lists"])))
            case "imitate":
                texts = self.rows(inputs["query_tokens"]) + self.rows(inputs["passage_tokens"])
                return int(inputs["config"].steps(texts))
            case "verify_export" | "verify_late_export" | "adopt" | "adopt_late" | "import_teacher":
                return 1
        like = next((artifacts_in(inputs[name])[0] for name in _LIKE if artifacts_in(inputs.get(name))), None)
        return self.rows(like) if like is not None else 1

    def _tokens_each(self, vectors: Artifact) -> float:
        """Vectors a text, by the sample; 0 of those that are one a text."""
        made = self.shadow(vectors)
        return int(made.metrics["tokens"]) / max(1, int(made.metrics["rows"])) if made and "tokens" in made.metrics else 0.0

    def texts(self, data: Artifact, name: str) -> int:
        """Rows of a table of a collection; of one that a run would write, as many as it has room for."""
        step = self.asked[data.id]
        if step.held or step.name in DATA:
            return table(data, name).rows
        return self.rows(step.inputs["scored"]) * 2 * int(step.inputs["rule"].built)  # write_dark's side corpus

    def kept(self, step: Asked) -> float:
        """Share of the queries that a list rule keeps, by the sample; 1 where the sample does not say."""
        made, from_ = self.shadow(step.made), self.shadow(step.inputs["scored"])
        if made is None or from_ is None or not parts_of(from_).rows:
            return 1.0
        return min(1.0, int(made.metrics["rows"]) / parts_of(from_).rows)

    def depth(self, artifact: Artifact) -> float:
        """Passages a query of candidates; 1 for tables that have no lists."""
        depth = artifact.metrics.get("depth")
        if depth is not None:
            return float(min(int(depth), self.passages))
        step = self.asked[artifact.id]
        if step.name == "take_run":
            return mean_depth(table(step.inputs["data"], "candidates/train"))
        if step.name == "take_scores":
            return table(step.inputs["data"], "scores/train").rows / max(1, self.rows(artifact))
        lists = [one for name in _LIKE[:4] for one in artifacts_in(step.inputs.get(name))]
        return self.depth(lists[0]) if lists and lists[0].id in self.asked else 1.0

    def width(self, vectors: Artifact) -> int:
        """Dimensions of the vectors that an embedding gives, or that a cut leaves."""
        inputs = self.asked[vectors.id].inputs
        return int(inputs["dim"] if "dim" in inputs else inputs["model"].metrics["width"])

    def units(self, step: Asked) -> float:
        """What its time grows with: texts, pairs, duels, updates, products of a search, or rows times passages a row."""
        rows, inputs = self.rows(step.made), step.inputs
        match step.name:
            case "tokenize" | "embed" | "embed_tokens" | "embed_pooled" | "bm25_index" | "build_index" | "evaluate":
                return rows
            case "learn_codec" | "pack_tokens":
                return rows
            case "search_tokens":
                return float(rows) * self.rows(inputs["passages"])
            case "search":
                return float(rows) * self.rows(inputs["passages"]) * self.width(inputs["passages"])
            case "search_index":
                return float(rows) * self.rows(inputs["index"]) * self.width(inputs["queries"])
            case "measure_sizes":
                return float(min(rows, MOST_QUERIES)) * self.rows(inputs["passages"])
            case "bm25_search":
                return float(rows) * self.rows(inputs["index"])
            case "score_duels":
                each = duels_each(self.shadow(inputs["pairs"]))
                return rows * each * (2.0 if inputs["symmetrize"] else ASIDE_BOTH_WAYS)
            case "verify_export" | "verify_late_export" | "train" | "train_reranker" | "imitate":
                return rows
        return rows * self.depth(step.made)


def duels_each(pairs: Artifact | None) -> float:
    """Compared pairs a query."""
    if pairs is None:
        return 1.0
    return int(pairs.metrics["pairs"]) / max(1, int(pairs.metrics["rows"]))


def list_width(lists: Artifact | None) -> float:
    """Passages a list, by the first file; 0 where a training has no lists."""
    if lists is None or not parts_of(lists).rows:
        return 0.0
    return mean_depth(parts_of(lists))


def unit_of(name: str) -> str:
    """What a rate counts: pairs/s, texts/s, updates/s."""
    if name in TRAININGS:
        return "updates"
    named = {
        "embed": "texts",
        "embed_tokens": "texts",
        "embed_pooled": "texts",
        "tokenize": "texts",
        "score_pairs": "pairs",
        "score_vectors": "pairs",
        "score_duels": "duels",
    }
    return "passages" if name == "score_lists" else named.get(name, "")
