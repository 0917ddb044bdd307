"""The command line. Nothing heavy is imported before a command has been chosen."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

EPILOG = """examples:
  raydrd run configs/quickstart.yaml
  raydrd run configs/beir/cldrd.yaml data.path=path/to/scifact
  raydrd run configs/beir/cldrd.yaml data.path=s3://bucket/scifact --store s3://bucket/raydrd
  raydrd run configs/beir/cldrd.yaml data.path=path/to/scifact --until score
  raydrd plan configs/beir/cldrd.yaml data.path=path/to/scifact --price 2.5
  raydrd search runs/quickstart "parse a date string"
  raydrd compare runs/quickstart:bm25 runs/quickstart
  raydrd ablate configs/beir/adam.yaml data.path=path/to/scifact --seeds 3
  raydrd sweep configs/sweeps/curriculum.yaml
  raydrd check path/to/collection

recipes (`raydrd recipes` lists the configs of each):
  cldrd        CL-DRD (SIGIR 2022): a curriculum over the teacher's order, from coarse to fine
  adam         ADAM (ACL Findings 2024): dark examples of moderate relevance, self-paced; from the abstract
  prod         PROD (WWW 2023): progressive teachers, then progressive data, anchored to the student of before
  pairdistill  PairDistill (EMNLP 2024): pairwise preferences between neighbours, mined again in rounds
  md2pr        MD2PR (arXiv 2023): sentence and word level, dynamic false-negative filter; from the abstract
  margin_mse   Margin-MSE (2020): the teacher's margins between a positive and its negatives
  mix          the parts of all papers, freely joined: curriculum + dark examples + pairs + filter is a config

Run the same command again to resume: what is finished is found in the store and not made again.
exit codes: 0 done, 1 a stage gave up, 2 something in the config or the data must be changed."""

COMPARE_EPILOG = """examples:
  raydrd compare runs/a runs/b
  raydrd compare runs/a:student_before runs/a runs/a:teacher --metric RR@10
  raydrd compare runs/a runs/b runs/c --all --html compare.html --latex compare.tex
  raydrd compare runs/a runs/b --common --json -

p is of a paired randomisation test, with Holm's correction for all comparisons made.
exit codes: 0 compared, whatever was found; 2 something in the command must be changed."""

PLAN_EPILOG = """examples:
  raydrd plan configs/beir/prod.yaml data.path=path/to/scifact
  raydrd plan configs/msmarco/cldrd.yaml data.path=path/to/msmarco --gpus 8 --price 2.5
  raydrd plan configs/beir/cldrd.yaml data.path=path/to/scifact --json plan.json

The data are read and checked and the models looked for, as in a run (which finds that done). Then the run's own workers
do a little of each kind of work on a sample of your rows, on this machine: texts embedded, pairs scored, updates of each
training at its own batch and list shape. A stage's time is its rows at the measured rate, divided by its workers, after
their start. Times are for a run that finds what the store holds now; known pairs of the score store count as unknown.
After the run its report says how far off this was. Rates of another machine are not guessed: plan where you will run.
exit codes: 0 planned; 2 the config or the data must be changed, or the run cannot fit (the line names the setting)."""

ABLATE_EPILOG = """examples:
  raydrd ablate configs/beir/adam.yaml data.path=path/to/scifact --list
  raydrd ablate configs/beir/adam.yaml data.path=path/to/scifact --seeds 3
  raydrd ablate configs/beir/adam.yaml data.path=path/to/scifact --only "dark examples"

The effect of an idea is the whole recipe less the recipe without it, query by query on the test queries: above 0 the
idea helps. Every row has the same updates (one that has not is marked !) and comes from the same store, so candidates
and teacher scores are made once. p is of a paired randomisation test, with Holm's correction for all variants that were
run. One seed leaves the luck of one training in every effect; --seeds 3 averages it out and shows how large it is.
exit codes: 0 done, 1 a stage gave up, 2 something in the command or the config must be changed, or it has no variants."""

SWEEP_EPILOG = """examples:
  raydrd sweep configs/sweeps/curriculum.yaml --dry-run
  raydrd sweep configs/sweeps/curriculum.yaml
  raydrd sweep configs/sweeps/dark.yaml data.limit=1000 samples=12 scheduler=fifo
  raydrd sweep my-sweep.yaml data.path=s3://bucket/scifact --store s3://bucket/raydrd --out s3://bucket/sweep

a sweep file:
  base: ../pydocs/cldrd.yaml                  # a config, beside this file
  set: {data.limit: 3000}                     # what all trials have changed
  space:                                      # what is drawn, applied in this order
    curriculum: {named: {two steps: [...], one step: [...]}}          # whole alternatives
    curriculum.*.train.learning_rate: {loguniform: [1.0e-5, 1.0e-4]}  # * : each item of the list
    loss.score_scale: {choice: [10, 20, 40]}                          # also uniform, int: [low, high], and step
  samples: 20                                 # also seeds, search: random|grid|optuna, metric, trial: {cpus, gpus}
  scheduler: {kind: asha, grace: 20}          # fifo, asha, pbt; grace in updates of the method

Overrides named like a field of the sweep file (samples, scheduler, seeds ..) change it; any other path changes the base.
The default runs first and makes what all trials share: tokens, vectors, candidates, teacher scores. Dev chooses; the best
and the default are then trained with fresh seeds and measured on test. Run the same command again to resume.
exit codes: 0 done, 1 a stage of the default gave up, or every trial failed, 2 something in the files must be changed."""

SCORES_EPILOG = """examples:
  raydrd scores stats --store s3://bucket/raydrd
  raydrd scores export scores.parquet --teacher 3f2a
  raydrd scores import scores.parquet --store elsewhere
  raydrd scores compact"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="raydrd",
        description="Distil a strong reranker into a fast dense retriever, on a laptop or on a Ray cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="run a recipe: corpus, queries and qrels in, a student and its proof out")
    run.add_argument("config", help="a YAML file, for example configs/quickstart.yaml")
    run.add_argument(
        "overrides", nargs="*", metavar="a.b=value", help="fields to change, for example curriculum.0.train.max_steps=50"
    )
    run.add_argument(
        "--dry-run", action="store_true", help="print the stages that would run and stop: no data is read, no model looked for"
    )
    run.add_argument(
        "--until",
        choices=("prepare", "embed", "score", "train"),
        help="stop well when this part of the run is finished, for machines of its own: prepare (data, models, tokens), embed "
        "(the first candidates), score (the teachers' first scores), train (nothing measured or published yet)",
    )
    run.add_argument("--out", help="run folder (default: runs/NAME)")
    run.add_argument("--store", help="where results are kept and found again: a folder or s3://... (default: .raydrd)")

    plan = verbs.add_parser(
        "plan",
        help="what a run would take: time, memory, disk and cost of every stage, measured on your data for a minute",
        description="Forecast a run by a probe of about a minute on your own data and hardware; nothing is run.",
        epilog=PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan.add_argument("config", help="a YAML file, as in run")
    plan.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields to change, as in run; before the options")
    plan.add_argument("--gpus", type=int, help="GPUs of the run, in nodes like this one (default: those of this machine)")
    plan.add_argument("--price", type=float, help="of a GPU for an hour; without GPUs, of this machine")
    plan.add_argument("--seconds", type=float, default=40.0, help="for probing models, about (default: 40)")
    plan.add_argument("--json", metavar="FILE", help="also write the numbers here; - for standard output")
    plan.add_argument("--store", help="as in run; what it holds is not counted again")

    evaluate = verbs.add_parser("evaluate", help="measure a bi-encoder on a collection")
    evaluate.add_argument("model", help="a model folder, a hub id, or package:NAME")
    evaluate.add_argument("--data", required=True, help="a collection: BEIR, MS MARCO or Parquet folder, or the word pydocs")
    evaluate.add_argument("--split", default="test", help="which judgements (default: test)")
    evaluate.add_argument("--json", metavar="FILE", help="also write the numbers here; - for standard output")
    evaluate.add_argument("--store", help="as in run")
    evaluate.add_argument("--ray", default="auto", help="auto, off, or an address (default: auto)")

    search = verbs.add_parser("search", help="search with the student of a run")
    search.add_argument("run", help="a run folder, for example runs/quickstart")
    search.add_argument("query")
    search.add_argument("-k", type=int, default=10, help="passages to show (default: 10)")
    search.add_argument("--by", choices=("tokens", "pooled"), help="a hybrid: MaxSim of tokens (default), or one vector a text")
    search.add_argument("--json", action="store_true", help="one JSON object on standard output")

    compare = verbs.add_parser(
        "compare",
        help="runs against one another on the same queries, with intervals and tests",
        description="Compare systems of runs on the same queries; the first RUN is the baseline. "
        "RUN is a run folder (its final student) or RUN:SYSTEM with bm25, student_before, teacher or student.",
        epilog=COMPARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("runs", nargs="*", metavar="RUN", help="two or more, for example runs/a runs/b runs/b:teacher")
    compare.add_argument("--metric", help="the main metric (default: the first of the first run)")
    compare.add_argument("--all", action="store_true", help="compare all pairs, not only each run with the first")
    compare.add_argument("--common", action="store_true", help="runs over different queries: compare on those all runs share")
    compare.add_argument("--samples", type=int, default=10_000, help="bootstrap and randomisation samples (default: 10000)")
    compare.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    compare.add_argument("--html", metavar="FILE", help="also write a page")
    compare.add_argument("--json", metavar="FILE", help="also write the numbers; - for standard output")
    compare.add_argument("--latex", metavar="FILE", help="also write a booktabs table")

    ablate = verbs.add_parser(
        "ablate",
        help="a recipe without each of its ideas: what is each of them worth?",
        description="Run a recipe whole and without each of its ideas, with the same updates, and compare them query by query. "
        "Written are ablation.html, ablation.md (a table to paste) and ablation.json.",
        epilog=ABLATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ablate.add_argument("config", help="a YAML file, as in run")
    ablate.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields to change, as in run")
    ablate.add_argument("--seeds", type=int, default=1, help="trainings of every row, averaged (default: 1)")
    ablate.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="IDEA", help="ideas to leave out (default: all)"
    )
    ablate.add_argument("--list", action="store_true", help="print the variants and run nothing")
    ablate.add_argument("--out", metavar="FOLDER", help="where the tables are written (default: runs/NAME-ablation)")
    ablate.add_argument("--store", help="as in run; what was made there before is not made again")

    sweep = verbs.add_parser(
        "sweep",
        help="many trials of a recipe over a space of its fields, from one store: which settings are best, and which matter",
        description="Search a space of a recipe's fields; all trials share what they can, so each costs its own updates only.",
        epilog=SWEEP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument("sweep", help="a YAML file, for example configs/sweeps/curriculum.yaml")
    sweep.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields of the sweep file, or of its base config")
    sweep.add_argument(
        "--dry-run", action="store_true", help="print the trials and stop: all are checked, nothing is read or run"
    )
    sweep.add_argument("--out", help="folder of the result (default: runs/NAME-sweep)")
    sweep.add_argument("--store", help="as in run; what trials share lies there")

    check = verbs.add_parser("check", help="read a collection and say everything that is wrong with it")
    check.add_argument("folder", help="a BEIR, MS MARCO or Parquet folder")
    check.add_argument("--json", action="store_true", help="one JSON object on standard output")

    scores = verbs.add_parser(
        "scores",
        help="the teacher scores that all runs of a store share: stats, export, import, compact",
        description="Every score that a reranker gave is kept under its own digest and those of the two texts, and is never "
        "computed again, whatever run asks. Runs may read and write meanwhile.",
        epilog=SCORES_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = scores.add_subparsers(dest="act", required=True, metavar="ACT")
    for name, text in {
        "stats": "how many scores of which teachers, in how many files",
        "export": "all scores as one Parquet file",
        "import": "add the scores of an exported file",
        "compact": "many small files as a few, pairs that stand there twice once",
    }.items():
        act = acts.add_parser(name, help=text, description=text)
        if name in ("export", "import"):
            act.add_argument("file", help="a Parquet file")
        if name in ("export", "compact"):
            act.add_argument("--teacher", help="the beginning of its name in `stats` (default: all)")
        if name == "stats":
            act.add_argument("--json", action="store_true", help="as JSON on standard output")
        act.add_argument("--store", help="as in run")

    why = verbs.add_parser("why", help="what differed when a run made something anew")
    why.add_argument("run", help="a run folder")

    verbs.add_parser("recipes", help="the papers that can be run, and their configs")
    return top


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with `a.b=value` wherever it stands: argparse alone takes them only before the options."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and not (hasattr(arguments, "overrides") and all("=" in one and not one.startswith("-") for one in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parsed(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from raydrd.errors import InputError, StageError

    try:
        verb: Any = {
            "run": _run,
            "plan": _plan,
            "evaluate": _evaluate,
            "search": _search,
            "compare": _compare,
            "ablate": _ablate,
            "sweep": _sweep,
            "check": _check,
            "scores": _scores,
            "why": _why,
            "recipes": _recipes,
        }
        return int(verb[arguments.verb](arguments))
    except InputError as error:
        print(f"raydrd: {error}" if "\n" not in str(error) else f"raydrd:\n{error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"raydrd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("raydrd: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from raydrd.spine.trouble import explained

        known = explained(error)  # a full disk, a folder that may not be written
        if known is None:
            raise
        print(f"raydrd: {known}", file=sys.stderr)
        return 2 if isinstance(known, InputError) else 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run and arguments.until:
        from raydrd.errors import InputError

        raise InputError("--until: a dry run shows all stages and runs none; leave out --until, or --dry-run")
    if arguments.until:
        from raydrd.session import run_until

        run_until(arguments.config, arguments.overrides, phase=arguments.until, out=arguments.out, store=arguments.store)
        return 0
    if arguments.dry_run:
        from raydrd.session import dry_run

        print(dry_run(arguments.config, arguments.overrides))
        return 0
    from raydrd.report.forecast import sentence
    from raydrd.report.table import final_table
    from raydrd.session import run

    report = run(arguments.config, arguments.overrides, out=arguments.out, store=arguments.store)
    folder = arguments.out or f"runs/{report['name']}"
    print(f"\n{final_table(report)}\n")
    print(f"{report['seconds']:.0f} s; report: {folder}/report.html, model: {folder}/model")
    if report.get("forecast"):
        print(sentence(report["forecast"]))
    print(f'search with it:  raydrd search {folder} "your question"')
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from raydrd.errors import InputError
    from raydrd.report.forecast import table
    from raydrd.session import plan

    for name, least in (("gpus", 1), ("price", 0), ("seconds", 0.1)):
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise InputError(f"--{name} {value:g}: write {least:g} or more")
    chatter = contextlib.redirect_stdout(sys.stderr) if arguments.json == "-" else contextlib.nullcontext()
    with chatter:
        cfg, found = plan(
            arguments.config, arguments.overrides, store=arguments.store, gpus=arguments.gpus, price=arguments.price,
            seconds=arguments.seconds,
        )  # fmt: skip
    from raydrd.planning.main import refuse

    as_json = json.dumps(found, indent=2, ensure_ascii=False)
    if arguments.json == "-":
        print(as_json)
    else:
        _write("--json", arguments.json, lambda: f"{as_json}\n")
        print(f"\n{table(found)}")
    refuse(cfg, found)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from raydrd.measure import evaluate_model

    found = evaluate_model(arguments.model, arguments.data, arguments.split, store=arguments.store, ray=arguments.ray)
    if arguments.json == "-":
        print(json.dumps(found, indent=2))
        return 0
    print(
        f"\n{found['model']} on {found['data']} ({found['split']}, {found['queries']} queries, {found['passages']:,} passages)"
    )
    for name, value in found["metrics"].items():
        low, high = found["intervals"][name]
        print(f"  {name:<10} {value:.4f}  [{low:.4f}, {high:.4f}]")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as stream:
            json.dump(found, stream, indent=2)
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from raydrd.measure import search_run

    found = search_run(arguments.run, arguments.query, k=arguments.k, by=arguments.by)
    if arguments.json:
        print(json.dumps({"query": arguments.query, "results": found}, indent=2, ensure_ascii=False))
        return 0
    for row in found:
        text = " ".join((row["text"] or "").split())
        print(f"{row['rank']:>3}  {row['score']:.4f}  {row['doc_id']}")
        if text:
            print(f"     {text[:160]}{' ...' if len(text) > 160 else ''}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from raydrd.comparing import compare_runs
    from raydrd.report import versus

    found = compare_runs(
        arguments.runs,
        metric=arguments.metric,
        all_pairs=arguments.all,
        common=arguments.common,
        samples=arguments.samples,
        seed=arguments.seed,
    )
    as_json = json.dumps({"verdict": versus.verdict(found), **found}, indent=2, ensure_ascii=False)
    _write("--html", arguments.html, lambda: versus.render(found))
    _write("--latex", arguments.latex, lambda: versus.latex(found))
    if arguments.json == "-":
        print(as_json)
        return 0
    _write("--json", arguments.json, lambda: f"{as_json}\n")
    print(versus.terminal(found))
    return 0


def _ablate(arguments: argparse.Namespace) -> int:
    from raydrd.ablating import ablate, ideas
    from raydrd.report import ablation
    from raydrd.session import read_config
    from raydrd.spine.storage import Folder

    if arguments.list:
        found = ideas(read_config(arguments.config, arguments.overrides), arguments.only)
        width = max(len(one.label) for one in found)
        for one in found:
            told = f"refused: {one.refusal}" if one.refusal else f"changes {', '.join(one.changes)}"
            print(f"{one.label:<{width}}  {told}")
        return 0
    result = ablate(
        arguments.config,
        arguments.overrides,
        seeds=arguments.seeds,
        only=arguments.only,
        out=arguments.out,
        store=arguments.store,
    )
    folder = arguments.out or f"runs/{result['name']}-ablation"
    ablation.write(result, out=Folder.of(folder))
    print(f"\n{ablation.terminal(result)}\n")
    print(
        f"{result['seconds']:.0f} s; page: {folder}/ablation.html, table: {folder}/ablation.md, numbers: {folder}/ablation.json"
    )
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from raydrd.sweeping.plan import read_plan
    from raydrd.sweeping.result import table

    if arguments.dry_run:
        print(table(read_plan(arguments.sweep, arguments.overrides)))
        return 0
    from raydrd.report import sweep as page
    from raydrd.spine.storage import Folder
    from raydrd.sweeping.main import sweep

    result = sweep(arguments.sweep, arguments.overrides, out=arguments.out, store=arguments.store)
    folder = arguments.out or f"runs/{result['name']}-sweep"
    page.write(result, out=Folder.of(folder))
    print(f"\n{page.terminal(result)}\n")
    print(f"{result['seconds']:.0f} s; page: {folder}/sweep.html, table: {folder}/sweep.md, numbers: {folder}/sweep.json")
    print(f"curves: tensorboard --logdir {folder}/tensorboard")
    return 0


def _write(option: str, path: str | None, text: Callable[[], str]) -> None:
    """Write the text to the file an option names, whole or not at all; nothing without a name."""
    if not path:
        return
    from pathlib import Path

    from raydrd.errors import InputError
    from raydrd.spine.storage import Folder

    if path == "-" or not Path(path).name:
        raise InputError(f"{option} {path}: write the name of a file; only --json writes to standard output with -")
    try:
        Folder.of(Path(path).parent).write_bytes(Path(path).name, text().encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror or error}); name another file") from error


def _check(arguments: argparse.Namespace) -> int:
    from raydrd.data.collect import check
    from raydrd.data.guess import guess

    findings = check(guess(arguments.folder))
    errors, warnings, notes = (findings.lines(severity) for severity in ("error", "warning", "note"))
    if arguments.json:
        print(json.dumps({"errors": errors, "warnings": warnings, "notes": notes}, indent=2, ensure_ascii=False))
    else:
        for title, lines in (("error", errors), ("warning", warnings), ("note", notes)):
            for line in lines:
                print(f"{title}: {line}")
        print(f"{findings.count('error')} errors, {findings.count('warning')} warnings")
    return 2 if findings.count("error") else 0


def _scores(arguments: argparse.Namespace) -> int:
    from raydrd import scores
    from raydrd.session import DEFAULT_STORE

    store = arguments.store or DEFAULT_STORE
    if arguments.act == "stats":
        found = scores.stats(store)
        print(json.dumps(found, indent=2) if arguments.json else scores.stats_table(found))
    elif arguments.act == "export":
        print(f"{scores.export(store, arguments.file, arguments.teacher):,} scores written to {arguments.file}")
    elif arguments.act == "import":
        print(f"{scores.bring_in(store, arguments.file):,} scores added to {store}")
    else:
        for name, before, after in scores.compact(store, arguments.teacher):
            print(f"{name}: {before:,} files -> {after:,}")
    return 0


def _why(arguments: argparse.Namespace) -> int:
    from raydrd.spine.storage import Folder

    folder = Folder.of(arguments.run)
    if not folder.exists("report.json"):
        from raydrd.errors import InputError

        raise InputError(f"{arguments.run}: no report.json; write the folder of a finished run, for example runs/quickstart")
    report = folder.read_json("report.json")
    for stage in report["stages"]:
        if stage["reused"]:
            print(f"{stage['label']}: reused {stage['name']}/{stage['id']}")
            continue
        print(f"{stage['label']}: made {stage['name']}/{stage['id']}, because")
        for line in stage["because"][:12]:
            print(f"    {line}")
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from raydrd.config import read_yaml
    from raydrd.errors import InputError
    from raydrd.recipes import RECIPES

    beside = Path(__file__).parents[1] / "configs"  # a checkout, used from another folder
    configs: dict[Any, list[str]] = {}
    for path in sorted((Path("configs") if Path("configs").is_dir() else beside).rglob("*.yaml")):
        try:
            configs.setdefault(read_yaml(path).get("recipe"), []).append(str(path))
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
    for name, module in RECIPES.items():
        print(f"{name:<12} {module.SUMMARY}")
        print(f"{'':<12} {'  '.join(configs.get(name, [])) or f'no config in configs/: write one with recipe: {name}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
