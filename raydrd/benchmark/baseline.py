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
`--raw` the labels are the margins as the teacher gives them, as one gets them without a thought of the scale. A margin
of 10 between two logits is out of the reach of two cosines: every negative is then pushed away as far as it goes.

A row needs as many negatives as every other. Lists with fewer scored passages than the longest are left out and counted.

FOLDER has what `raydrd compare RUN FOLDER` reads: report.json and per_query.parquet, and the trained model in model/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.benchmark.margins import Rows, Taken, take, training_rows
from raydrd.errors import InputError
from raydrd.metrics import per_query
from raydrd.naming import resolve
from raydrd.slices import traits
from raydrd.spine.parts import Parts
from raydrd.spine.progress import say
from raydrd.spine.provenance import provenance
from raydrd.spine.storage import Folder
from raydrd.spine.tables import CANDIDATES
from raydrd.stages.adopt import model_folder
from raydrd.stages.load import table
from raydrd.stages.search import QUERY_BLOCK, top_k
from raydrd.statistics import bootstrap_interval

RECIPE = "sentence-transformers"  # what a baseline's report says in the place of a recipe
LIBRARIES = ("sentence-transformers", "datasets", "accelerate")


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
    (folder, system), home = resolve(run), Folder.of(out)
    if system != "student":
        raise InputError(f"{run}: a system of a run; write the run folder alone")
    taken = take(folder, store=store)
    _check_free(home, run=folder)
    factor = 1.0 if raw else taken.teacher_scale / taken.score_scale
    rows = training_rows(taken, factor=factor)
    say(f"baseline: {len(rows.margins):,} lists of {len(rows.columns) - 1} passages, {rows.left_out:,} shorter ones left out")
    model, loss = trained(taken, rows)
    evaluation = taken.report["config"]["evaluation"]
    queries, corpus = table(taken.data, "queries/test"), table(taken.data, "corpus")
    found, speed = searched(model, queries, corpus, k=int(evaluation["depth"]))
    values = per_query(found, queries.slice(0, queries.rows), metrics=tuple(evaluation["metrics"]))
    labels = "the teacher's margins as they are" if raw else f"the teacher's margins times {factor:.4g}"
    report = {
        "name": home.uri.rstrip("/").rpartition("/")[2],
        "recipe": RECIPE,
        "method": f"MarginMSELoss of sentence-transformers {metadata.version('sentence-transformers')} on {labels}",
        "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": " ".join(["python", "jobs/baseline.py", run, "--out", out, *(["--raw"] if raw else [])]),
        "config": {"run": taken.report["name"], "train": _training(taken), "label_factor": factor, "evaluation": evaluation},
        "data": taken.report["data"],
        "systems": {"student": {**_system(values, evaluation), "passages_per_s": speed, "description": f"learnt {labels}"}},
        "comparisons": [],
        "queries": values.num_rows,
        "stages": [],
        "curve": {"loss": [], "dev": [], "segments": []},
        "preflight": [],
        "facts": [{"label": "margins", "values": {"lists": len(rows.margins), "left out": rows.left_out, "mean loss": loss}}],
        "examples": [],
        "provenance": _provenance(taken),
        "store": store or taken.report["store"],
        "artifacts": {"data": taken.report["artifacts"]["data"]},
    }
    home.delete_file("report.json")
    report["systems"]["student"]["size_mb"] = _keep(model, home / "model")
    home.write_table("per_query.parquet", _by_query(values, queries, corpus))
    report["seconds"] = round(time.monotonic() - began, 1)
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


# -- training ---------------------------------------------------------------------------------------


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


def _system(values: pa.Table, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Means and intervals, as in a run's report."""
    numbers = {metric: values[metric].to_numpy() for metric in values.column_names if metric != "query_row"}
    draw = {"seed": int(evaluation["seed"]), "samples": int(evaluation["samples"])}
    intervals = {metric: list(bootstrap_interval(v, **draw)) for metric, v in numbers.items()}
    return {**{metric: float(np.mean(v)) for metric, v in numbers.items()}, "intervals": intervals}


def _training(taken: Taken) -> dict[str, Any]:
    return {
        "learning_rate": taken.config.learning_rate,
        "train_batch_size": taken.config.train_batch_size,
        "max_steps": taken.updates,
        "warmup_steps": taken.warm_up,
        "seed": taken.config.seed,
    }


def _provenance(taken: Taken) -> dict[str, Any]:
    source, made = taken.report["provenance"], provenance()
    return {
        **made,
        "versions": {**made["versions"], **{name: metadata.version(name) for name in LIBRARIES}},
        "seed": taken.config.seed,
        "precision": "fp32",
        "data_digest": source["data_digest"],
        "student": f"{taken.start.stage}/{taken.start.id}",
        "teacher": source["teacher"],
        "lists": f"{taken.lists.stage}/{taken.lists.id}",
    }


def _keep(model: Any, where: Folder) -> float:
    """Write the trained model in the place of an earlier one; the size of its weights in MB."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, create_model_card=False)
        where.delete()
        where.upload(Path(scratch))
        return sum(path.stat().st_size for path in Path(scratch).rglob("*.safetensors")) / 1e6
