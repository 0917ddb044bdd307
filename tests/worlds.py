"""Toy worlds for the whole suite: a BEIR collection whose right answers are known, and tiny real models.

Twelve subjects of eight words. Five passages and four queries a subject, each using only some of its words,
so that a query often shares no word with a passage it should find: word overlap helps, knowing the subjects
is perfect.
"""

from __future__ import annotations

import csv
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

SUBJECTS: dict[str, tuple[str, ...]] = {
    "sea": ("wave", "tide", "harbour", "sail", "anchor", "reef", "salt", "gull"),
    "kitchen": ("oven", "flour", "butter", "knife", "recipe", "spice", "boil", "plate"),
    "sky": ("planet", "orbit", "comet", "telescope", "moon", "star", "eclipse", "rocket"),
    "forest": ("oak", "moss", "fern", "owl", "acorn", "trail", "pine", "fox"),
    "music": ("violin", "chord", "melody", "drum", "concert", "singer", "rhythm", "piano"),
    "law": ("judge", "court", "verdict", "lawyer", "appeal", "statute", "witness", "trial"),
    "money": ("bank", "loan", "interest", "bond", "budget", "tax", "inflation", "market"),
    "medicine": ("doctor", "fever", "vaccine", "nurse", "dose", "symptom", "clinic", "surgery"),
    "football": ("goal", "referee", "penalty", "striker", "league", "stadium", "coach", "tackle"),
    "computing": ("compiler", "memory", "kernel", "cache", "thread", "socket", "pointer", "binary"),
    "weather": ("rain", "storm", "thunder", "frost", "cloud", "drought", "humidity", "breeze"),
    "history": ("empire", "treaty", "castle", "dynasty", "siege", "monarch", "revolt", "archive"),
}
FILLER = ("about", "and", "for", "how", "long", "many", "new", "of", "old", "some", "the", "what", "with")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPLITS = ("train", "train", "dev", "test")  # of a subject's four queries
_SUBJECT_OF = {word: subject for subject, words in SUBJECTS.items() for word in (subject, *words)}


@dataclass(frozen=True)
class World:
    """The collection in memory. Texts are what a reader gives: title and text joined by one space."""

    passages: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, dict[str, int]]]  # split -> query id -> passage id -> grade
    subjects: dict[str, str]  # of every passage and query id


def toy_collection(folder: str | Path) -> World:
    """Write corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv: 60 passages, 24 + 12 + 12 queries.

    All five passages of a query's subject are relevant, with grade 1. Every second passage has a title.
    """
    home, draw = Path(folder), random.Random(7)
    world = World({}, {}, {"train": {}, "dev": {}, "test": {}}, {})
    corpus, queries = [], []
    for subject, words in SUBJECTS.items():
        own = []
        for number in range(5):
            doc_id = f"d{len(corpus):02d}"
            title = f"{subject} {number}" if number % 2 else ""
            text = " ".join(draw.sample([*draw.sample(words, 4), *draw.sample(FILLER, 4)], 8))
            corpus.append({"_id": doc_id, "title": title, "text": text})
            world.passages[doc_id] = f"{title} {text}".strip()
            world.subjects[doc_id] = subject
            own.append(doc_id)
        for split in SPLITS:
            query_id = f"q{len(queries):02d}"
            text = " ".join([draw.choice(FILLER), *draw.sample(words, 2), draw.choice(FILLER)])
            queries.append({"_id": query_id, "text": text})
            world.queries[query_id] = text
            world.subjects[query_id] = subject
            world.qrels[split][query_id] = dict.fromkeys(own, 1)
    _write_jsonl(home / "corpus.jsonl", corpus)
    _write_jsonl(home / "queries.jsonl", queries)
    (home / "qrels").mkdir(exist_ok=True)
    for split, judged in world.qrels.items():
        with (home / "qrels" / f"{split}.tsv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(("query-id", "corpus-id", "score"))
            rows.writerows((q, d, grade) for q, grades in judged.items() for d, grade in grades.items())
    return world


def subject_overlap(query: str, passage: str) -> float:
    """The oracle teacher's logit: words of the passage on the query's subjects, plus a little for shared
    words.

    At least 4 for a relevant passage of `toy_collection`, below 1 for any other.
    """
    asked = {_SUBJECT_OF[word] for word in query.split() if word in _SUBJECT_OF}
    found = passage.split()
    shared = len(set(query.split()) & set(found))
    return sum(_SUBJECT_OF.get(word) in asked for word in found) + 0.1 * shared


def tiny_tokenizer(words: tuple[str, ...] = (), *, max_length: int = 64) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer that knows the toy collection's words, digits, and `words`."""
    known = {*_SUBJECT_OF, *FILLER, *"0123456789", *(word.lower() for word in words)}
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *sorted(known), "##s"))}
    return BertTokenizer(vocab=vocabulary, model_max_length=max_length)


def tiny_encoder(
    folder: str | Path,
    *,
    layers: int = 2,
    width: int = 32,
    seed: int = 0,
    max_length: int = 64,
    dropout: float = 0.0,
    words: tuple[str, ...] = (),
) -> Path:
    """A sentence-transformers folder with a random BERT, mean pooling and normalisation; its path."""
    # Here, because importing it takes seconds that tests of pure functions need not spend.
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tokenizer = tiny_tokenizer(words, max_length=max_length)
    config = _config(tokenizer, layers=layers, width=width, max_length=max_length, dropout=dropout)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as bare:
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(bare)
        tokenizer.save_pretrained(bare)
        modules = [Transformer(bare, max_seq_length=max_length), Pooling(width, "mean"), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    return Path(folder)


def tiny_cross_encoder(
    folder: str | Path,
    *,
    layers: int = 2,
    width: int = 32,
    seed: int = 0,
    max_length: int = 64,
    dropout: float = 0.0,
    words: tuple[str, ...] = (),
) -> Path:
    """A Hugging Face folder with a random BERT that gives one logit a pair, same tokenizer; its path."""
    tokenizer = tiny_tokenizer(words, max_length=max_length)
    config = _config(tokenizer, layers=layers, width=width, max_length=max_length, dropout=dropout)
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def oracle_cross_encoder(folder: str | Path) -> Path:
    """A Hugging Face cross-encoder folder whose weights are set by hand to rank `toy_collection` perfectly.

    Every word is a one-hot of its subject (mirrored with the other sign, so that layer norms only scale).
    [CLS] attends to all tokens alike and so holds each subject's share of the words; a steep unit a subject
    fires when the share passes what one text alone can reach: query and passage have the same subject.
    """
    tokenizer, half, width = tiny_tokenizer(), 16, 32
    config = _config(tokenizer, layers=1, width=width, max_length=64, dropout=0.0)
    config.num_labels = 1
    model = BertForSequenceClassification(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    column = {subject: number for number, subject in enumerate(SUBJECTS)}
    other, answer = len(column), len(column) + 1
    for word, row in tokenizer.get_vocab().items():
        at = column[_SUBJECT_OF[word]] if word in _SUBJECT_OF else other
        model.bert.embeddings.word_embeddings.weight[row, [at, half + at]] = torch.tensor([1.0, -1.0])
    layer = model.bert.encoder.layer[0]
    layer.attention.self.value.weight.copy_(torch.eye(width))
    layer.attention.output.dense.weight.copy_(torch.eye(width))
    for at in column.values():
        layer.intermediate.dense.weight[at, at] = 10.0
        layer.output.dense.weight[[answer, half + answer], at] = torch.tensor([1.0, -1.0])
    layer.intermediate.dense.bias.fill_(-8.0)
    model.bert.pooler.dense.weight[0, answer] = 0.25
    model.classifier.weight[0, 0] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def sharpen(folder: Path, *, by: float = 8) -> Path:
    """Larger matrices in a saved model: one as drawn says nearly the same of every text, and any tolerance would pass."""
    file = folder / "model.safetensors"
    save_file({name: by * t if t.ndim > 1 else t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def _config(tokenizer: BertTokenizer, *, layers: int, width: int, max_length: int, dropout: float) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        intermediate_size=2 * width,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
