"""The baseline: Margin-MSE as a user of sentence-transformers would run it, with that library, on what a run mined.

`python jobs/baseline.py RUN --out FOLDER` takes a finished run of recipe margin_mse and, from its store, the very things
that its own training read: the student of before, the training lists with the teacher's scores, the texts. It trains
with `SentenceTransformerTrainer` and `MarginMSELoss` on rows (query, positive, negative_1, ..., negative_n) with a list
of margins. Learning rate, batch size, updates, warm-up and seed are the run's; the rest is as the library has it: its
shuffling, AdamW without weight decay, the dropout that the model's own files name, one length limit for queries and
passages (the passages'). Dot products of the model's own output are compared, which are cosines where it normalises.

The teacher's margins and the student's must live on one scale. raydrd compares `score_scale` times the student's scores
with `teacher_scale` times the teacher's. Here the student's scores are plain, so the labels are the teacher's margins
times teacher_scale / score_scale: the loss is the run's divided by score_scale squared and has the same minimum. With
`--raw` the labels are the margins as the teacher gives them. A logit's margin of 10 is out of reach of two cosines, so
that every negative is then pushed away as far as it goes: what happens to who does not think of the scale.

FOLDER has what `raydrd compare RUN FOLDER` reads: report.json and per_query.parquet, and the trained model in model/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.layout import Layout
from raydrd.lists import DARK, POSITIVE
from raydrd.metrics import per_query
from raydrd.naming import resolve
from raydrd.parts import Parts
from raydrd.progress import say
from raydrd.provenance import provenance
from raydrd.slices import traits
from raydrd.stages.adopt import layout_of, model_folder
from raydrd.stages.load import table
from raydrd.stages.search import QUERY_BLOCK, top_k
from raydrd.stages.shards import parts_of
from raydrd.statistics import bootstrap_interval
from raydrd.storage import Folder
from raydrd.store import MANIFEST, Artifact
from raydrd.tables import CANDIDATES
from raydrd.training.plan import TrainConfig

RECIPE = "sentence-transformers"  # what a baseline's report says in the place of a recipe
LIBRARIES = ("sentence-transformers", "datasets", "accelerate", "transformers", "torch")


@dataclass(frozen=True)
class Taken:
    """What a run's own Margin-MSE training read, and how it trained."""

    report: dict[str, Any]
    start: Artifact
    data: Artifact
    train_data: Artifact
    lists: Artifact
    config: TrainConfig
    teacher_scale: float
    score_scale: float

    @property
    def updates(self) -> int:
        return self.config.steps(int(self.lists.metrics["rows"]))

    @property
    def warm_up(self) -> int:
        """Updates of the warm-up, as `TrainConfig.rate` counts them."""
        asked = self.config.warmup_steps
        return min(round(self.config.warmup_ratio * self.updates) if asked is None else asked, self.updates - 1)

    @property
    def layout(self) -> Layout:
        return layout_of(self.start)


@dataclass(frozen=True)
class Rows:
    """What the library trains on: columns of texts, query first, and margins [rows, negatives]."""

    columns: dict[str, list[str]]
    margins: list[list[float]]
    left_out: int  # lists that are shorter than the others: the library wants as many negatives in every row


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure and write; 2 when the command or the run must be changed."""
    parser = argparse.ArgumentParser(
        prog="jobs/baseline.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of recipe margin_mse")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the baseline is written")
    parser.add_argument("--raw", action="store_true", help="learn the margins as the teacher gives them")
    parser.add_argument("--store", help="where the run's store is now (default: where its report says)")
    options = parser.parse_args(argv)
    try:
        report = baseline(options.run, out=options.out, raw=options.raw, store=options.store)
    except InputError as error:
        print(f"baseline: {error}", file=sys.stderr)
        return 2
    for name in report["systems"]["student"]["intervals"]:
        print(f"  {name:<10} {report['systems']['student'][name]:.4f}")
    print(f"{report['seconds']:.0f} s; beside the run:  raydrd compare {options.run} {options.out}")
    return 0


def baseline(run: str, *, out: str, raw: bool = False, store: str | None = None) -> dict[str, Any]:
    """Train the run's student again with sentence-transformers, measure it as the run was, write a run folder; its report.

    raw: the teacher's margins as they are; otherwise on the scale of the student's own dot products.

    Raises:
        InputError: no such run, another recipe, a store that is gone, an `out` that holds something else, or
            sentence-transformers' Trainer lacks a package.
    """
    began = time.monotonic()
    _check_library()
    folder, home = resolve(run)[0], Folder.of(out)
    taken = take(folder, store=store)
    _check_free(home, run=folder)
    factor = 1.0 if raw else taken.teacher_scale / taken.score_scale
    rows = training_rows(taken, factor=factor)
    say(f"baseline: {len(rows.margins):,} lists of {len(rows.columns) - 1} passages, {rows.left_out:,} left out (shorter)")
    model, loss = trained(taken, rows)
    evaluation = taken.report["config"]["evaluation"]
    queries, corpus = table(taken.data, "queries/test"), table(taken.data, "corpus")
    found, speed = searched(model, queries, corpus, k=int(evaluation["depth"]))
    values = per_query(found, queries.slice(0, queries.rows), metrics=tuple(evaluation["metrics"]))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, create_model_card=False)
        size = sum(p.stat().st_size for p in Path(scratch).rglob("*.safetensors")) / 1e6
        home.delete_file("report.json")
        (home / "model").delete()
        (home / "model").upload(Path(scratch))
    home.write_table("per_query.parquet", _by_query(values, queries, corpus))
    training = {
        "learning_rate": taken.config.learning_rate,
        "train_batch_size": taken.config.train_batch_size,
        "max_steps": taken.updates,
        "warmup_steps": taken.warm_up,
        "seed": taken.config.seed,
        "label_factor": factor,
        "raw": raw,
    }
    labels = "the teacher's margins as they are" if raw else f"the teacher's margins times {factor:.4g}"
    system = _system(values, samples=int(evaluation["samples"]), seed=int(evaluation["seed"]))
    source = taken.report
    report = {
        "name": home.uri.rstrip("/").rpartition("/")[2],
        "recipe": RECIPE,
        "method": f"MarginMSELoss of sentence-transformers {metadata.version('sentence-transformers')} on {labels}",
        "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": " ".join(["python", "jobs/baseline.py", run, "--out", out, *(["--raw"] if raw else [])]),
        "seconds": round(time.monotonic() - began, 1),
        "config": {"run": source["name"], "train": training, "evaluation": evaluation},
        "data": source["data"],
        "systems": {
            "student": {**system, "passages_per_s": speed, "size_mb": size, "description": f"learnt {labels}"}
        },
        "comparisons": [],
        "queries": values.num_rows,
        "stages": [],
        "curve": {"loss": [], "dev": [], "segments": []},
        "preflight": [],
        "facts": [
            {"label": "baseline", "values": {"lists": len(rows.margins), "left out": rows.left_out, "mean loss": loss}}
        ],
        "examples": [],
        "provenance": {
            **provenance(),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "seed": taken.config.seed,
            "precision": "fp32",
            "data_digest": source["provenance"]["data_digest"],
            "student": f"{taken.start.stage}/{taken.start.id}",
            "teacher": source["provenance"]["teacher"],
            "lists": f"{taken.lists.stage}/{taken.lists.id}",
        },
        "store": store or source["store"],
        "artifacts": {"data": source["artifacts"]["data"]},
    }
    home.write_json("report.json", report)  # last: a run folder with a report is whole
    return report


def _check_library() -> None:
    missing = []
    for name in ("datasets", "accelerate"):
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise InputError(f"sentence-transformers' Trainer needs {' and '.join(missing)}; pip install 'raydrd[baseline]'")


def _check_free(home: Folder, *, run: Folder) -> None:
    if home == run:
        raise InputError(f"--out {home}: the run itself; name another folder")
    if home.files() and not (home.exists("report.json") and home.read_json("report.json").get("recipe") == RECIPE):
        raise InputError(f"--out {home}: what is in it is no baseline and would be lost; name another folder")


# -- what the run read ------------------------------------------------------------------------------


def take(run: Folder, *, store: str | None = None) -> Taken:
    """What the Margin-MSE training of a run read, found through the identities in its store.

    Raises:
        InputError: the run is of another recipe, its store is not there, or its training has no counterpart here.
    """
    report = run.read_json("report.json")
    if report.get("recipe") != "margin_mse":
        raise InputError(f"{run}: a run of {report.get('recipe')}; name a run of margin_mse, whose loss the library has")
    root = Folder.of(store or report["store"])
    made = [_opened(root, f"train/{record['id']}") for record in report["stages"] if record["name"] == "train"]
    # A warm-up on labels is a `train` stage too.
    found = [one for one in made if _margins(one) is not None]
    if not found:
        raise InputError(f"{run}: no stage of it learnt margins; run its command again")
    inputs = found[-1].manifest["inputs"]
    margins, config = _margins(found[-1]), TrainConfig.model_validate(inputs["config"]["fields"])
    assert margins is not None
    if config.train_group_size is not None:
        raise InputError(f"{run}: train.train_group_size: the library reads whole lists; name a run without it")
    lists = _opened(root, inputs["lists"]["artifact"])
    return Taken(
        report=report,
        start=_opened(root, inputs["start"]["artifact"]),
        data=_opened(root, report["artifacts"]["data"]),
        train_data=_opened(root, lists.manifest["inputs"]["data"]["artifact"]),
        lists=lists,
        config=config,
        teacher_scale=float(margins["teacher_scale"]),
        score_scale=float(inputs["objective"]["fields"]["score_scale"]),
    )


def _margins(made: Artifact) -> dict[str, Any] | None:
    """The fields of a training's MarginMSE term; None where it learnt something else."""
    terms = made.manifest["inputs"]["objective"]["fields"]["terms"]
    return next((term["fields"] for term in terms if term["component"] == "MarginMSE"), None)


def _opened(root: Folder, name: str) -> Artifact:
    stage, _, id_ = name.partition("/")
    home = root / stage / id_
    try:
        return Artifact(id=id_, stage=stage, home=home, manifest=home.read_json(MANIFEST))
    except FileNotFoundError:
        raise InputError(f"{root}: no {name} here; name the run's store with --store, or run its command again") from None


# -- training ---------------------------------------------------------------------------------------


def places(flags: Sequence[int], teacher: Sequence[float]) -> list[int]:
    """Places of a list that Margin-MSE reads, its positive first; none where the positive's score is unknown.

    As `objectives.MarginMSE` with `positive: either`: the first judged positive, or without one the teacher's best;
    the others are all passages with a known score that were not written for the query.
    """
    known = [n for n, (flag, score) in enumerate(zip(flags, teacher, strict=True)) if not np.isnan(score) and not flag & DARK]
    gold = [n for n, flag in enumerate(flags) if flag & POSITIVE]
    if not known or (gold and gold[0] not in known):
        return []
    first = gold[0] if gold else max(known, key=lambda n: (teacher[n], -n))
    return [first, *(n for n in known if n != first)]


def training_rows(taken: Taken, *, factor: float) -> Rows:
    """All training lists as the library's rows; labels are the teacher's margins times `factor`.

    Raises:
        InputError: no list has a negative.
    """
    lists = [one for _, part in parts_of(taken.lists).each() for one in part.to_pylist()]
    chosen = [places(one["flags"], one["teacher_scores"]) for one in lists]
    width = max((len(found) for found in chosen), default=0)
    if width < 2:
        raise InputError("no training list has a positive and a negative with teacher scores; there is nothing to learn")
    kept = [(one, found) for one, found in zip(lists, chosen, strict=True) if len(found) == width]
    queries = _texts(table(taken.train_data, "queries/train"), [one["query_row"] for one, _ in kept])
    passages = _texts(table(taken.data, "corpus"), [one["doc_rows"][n] for one, found in kept for n in found])
    names = ["positive", *(f"negative_{n}" for n in range(1, width))]
    columns = {"query": [queries[one["query_row"]] for one, _ in kept]}
    columns |= {name: [passages[one["doc_rows"][found[n]]] for one, found in kept] for n, name in enumerate(names)}
    scores = [[one["teacher_scores"][n] for n in found] for one, found in kept]
    margins = [[(own[0] - other) * factor for other in own[1:]] for own in scores]
    return Rows(columns=columns, margins=margins, left_out=len(lists) - len(kept))


def _texts(parts: Parts, wanted: list[int]) -> dict[int, str]:
    rows = np.unique(np.array(wanted, dtype=np.int64))
    return dict(zip(rows.tolist(), parts.take(rows, ["text"])["text"].to_pylist(), strict=True))


def trained(taken: Taken, rows: Rows) -> tuple[Any, float]:
    """The run's student of before after the library's own training on the CPU, and the mean training loss."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss

    layout = taken.layout
    sides = {name: ("query" if name == "query" else "document") for name in rows.columns}
    prompts = {name: layout.query_prompt if side == "query" else layout.passage_prompt for name, side in sides.items()}
    model = SentenceTransformer(str(model_folder(taken.start).local_folder()), device="cpu", local_files_only=True)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=scratch,
                learning_rate=taken.config.learning_rate,
                per_device_train_batch_size=taken.config.train_batch_size,
                max_steps=taken.updates,
                warmup_steps=taken.warm_up,
                seed=taken.config.seed,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                prompts={name: prompt for name, prompt in prompts.items() if prompt} or None,
                router_mapping=sides if layout.towers == "separate" else None,
            ),
            train_dataset=import_module("datasets").Dataset.from_dict({**rows.columns, "label": rows.margins}),
            loss=MarginMSELoss(model),  # compares dot products
        )
        done = trainer.train()
    return model.eval(), float(done.training_loss)


# -- measuring --------------------------------------------------------------------------------------


def searched(model: Any, queries: Parts, corpus: Parts, *, k: int) -> tuple[pa.Table, float]:
    """The k passages of highest inner product for every query, as CANDIDATES; passages encoded a second."""
    import torch

    texts = [text for _, part in corpus.each(["text"]) for text in part["text"].to_pylist()]
    asked = queries.slice(0, queries.rows, ["text"])["text"].to_pylist()
    began = time.monotonic()
    passages_ND = torch.from_numpy(_encoded(model.encode_document, texts))
    speed = len(texts) / (time.monotonic() - began)
    queries_QD = torch.from_numpy(_encoded(model.encode_query, asked))
    found = []
    for lo in range(0, len(asked), QUERY_BLOCK):
        scores, rows = top_k(queries_QD[lo : lo + QUERY_BLOCK] @ passages_ND.T, k)
        block = zip(rows.tolist(), scores.tolist(), strict=True)
        found += [{"query_row": lo + n, "doc_rows": docs, "scores": own} for n, (docs, own) in enumerate(block)]
    return pa.Table.from_pylist(found, schema=CANDIDATES), speed


def _encoded(encode: Any, texts: list[str]) -> NDArray[np.float32]:
    return np.asarray(encode(texts, convert_to_numpy=True, show_progress_bar=False), dtype=np.float32)


def _by_query(values: pa.Table, queries: Parts, corpus: Parts) -> pa.Table:
    """The columns of a run's per_query.parquet, for the one system there is."""
    about = traits(queries, corpus, rows=values["query_row"].to_numpy())
    columns: dict[str, Any] = {name: about[name] for name in about.column_names}
    columns |= {f"student {metric}": values[metric] for metric in values.column_names if metric != "query_row"}
    return pa.table(columns)


def _system(values: pa.Table, *, samples: int, seed: int) -> dict[str, Any]:
    """Means and intervals, as in a run's report."""
    numbers = {metric: values[metric].to_numpy() for metric in values.column_names if metric != "query_row"}
    intervals = {metric: list(bootstrap_interval(v, seed=seed, samples=samples)) for metric, v in numbers.items()}
    return {**{metric: float(np.mean(v)) for metric, v in numbers.items()}, "intervals": intervals}
