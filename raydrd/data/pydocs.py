"""A real collection from what is already on disk: docstrings of this Python and of its packages.

A query is a docstring's summary sentence; its one relevant passage is the qualified name and the rest of the
docstring, without that sentence. Files are parsed by `ast`, nothing is imported. The same Python and
packages give the same collection.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raydrd.data.findings import Findings
from raydrd.data.formats import Judgement, Text
from raydrd.data.spec import Data
from raydrd.errors import InputError

BUILDER = 1  # raise when the same files would give another collection
QUERY_WORDS = 5  # at least
PASSAGE_WORDS = 20  # at least, without the name
LARGEST_FILE = 1_000_000  # bytes; larger ones are generated tables
SPLITS = {"train": 0.7, "dev": 0.1, "test": 0.2}
_TESTS = frozenset({"test", "tests", "_tests", "idle_test", "conftest", "site-packages", "dist-packages", "__pycache__"})
# A full stop ends the summary unless it stands in an abbreviation ("e.g. this") or inside a name ("os.path").
_SENTENCE = re.compile(r".+?(?<!e\.g)(?<!i\.e)(?<! vs)(?<! cf)[.!?](?=\s|$)", re.DOTALL)


class Docstring(NamedTuple):
    """One query and its passage. `id` is the qualified name, `line` where it is defined in `file`."""

    id: str
    file: str
    line: int
    query: str
    passage: str


@dataclass(frozen=True)
class Root:
    """A folder on the import path, and which of its top-level names to read (None: all)."""

    folder: Path
    only: frozenset[str] | None = None


def roots(packages: str | tuple[str, ...]) -> list[Root]:
    """Where the sources of `stdlib`, of `all` installed packages, or of the named ones lie.

    Raises:
        InputError: a named package is not installed as Python source.
    """
    paths = sysconfig.get_paths()
    standard = Root(Path(paths["stdlib"]))
    sites = [Root(Path(folder)) for folder in dict.fromkeys((paths["purelib"], paths["platlib"]))]
    if packages == "stdlib":
        return [standard]
    if packages == "all":
        return [standard, *sites]
    wanted = frozenset(packages)
    chosen = [Root(root.folder, wanted) for root in (standard, *sites)]
    for name in packages:
        if not any((r.folder / name).is_dir() or (r.folder / f"{name}.py").is_file() for r in chosen):
            raise InputError(f"data.packages: no Python source of {name!r} in this environment; install it, or remove it")
    return chosen


def identity(data: Data) -> str:
    """What the collection is made from, as text: the builder's version, Python's, and the packages'."""
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.system()}"
    known: set[str] = set()
    if data.packages != "stdlib":
        owners = importlib.metadata.packages_distributions() if data.packages != "all" else {}
        wanted = {d for name in data.packages for d in owners.get(name, [])} if data.packages != "all" else None
        for distribution in importlib.metadata.distributions():
            name = distribution.metadata["Name"]
            if name and name.lower() != "raydrd" and (wanted is None or name in wanted):
                known.add(f"{name.lower()}=={distribution.version}")
    return "\n".join([f"pydocs {BUILDER}", python, *sorted(known)])


def build(data: Data) -> tuple[list[Docstring], dict[str, int]]:
    """The docstrings by id, no more than `data.limit`, and counts of what was read and skipped."""
    found, counts = read(roots(data.packages))
    if data.limit is not None and len(found) > data.limit:
        found = sorted(sorted(found, key=lambda d: _share(d.id, "limit"))[: data.limit])
    return found, counts


def read(places: Sequence[Root]) -> tuple[list[Docstring], dict[str, int]]:
    """All usable docstrings below the roots, sorted by id, no two with the same query or the same passage."""
    counts = {"python_files": 0, "files_too_large": 0, "files_not_parsed": 0, "duplicates": 0}
    found = [d for root in places for path in _sources(root) for d in _file(root.folder, path, counts)]
    found.sort(key=lambda d: d.id)  # stable: of two definitions of one name the first stays
    kept: list[Docstring] = []
    ids: set[str] = set()
    queries_: set[str] = set()
    passages_: set[str] = set()
    for docstring in found:
        if docstring.id in ids or docstring.query in queries_ or docstring.passage in passages_:
            counts["duplicates"] += 1
            continue
        kept.append(docstring)
        ids.add(docstring.id)
        queries_.add(docstring.query)
        passages_.add(docstring.passage)
    return kept, counts


def _sources(root: Root) -> Iterator[Path]:
    """Python files below a root in a fixed order, without tests, raydrd and folders no import reaches."""
    for entry in sorted(root.folder.iterdir()) if root.folder.is_dir() else []:
        name = entry.name.removesuffix(".py")
        if name == "raydrd" or (root.only is not None and name not in root.only):
            continue
        yield from _walk(entry)


def _walk(entry: Path) -> Iterator[Path]:
    name = entry.name.removesuffix(".py")
    if name in _TESTS or not name.isidentifier():
        return
    if entry.is_dir():
        for inner in sorted(entry.iterdir()):
            yield from _walk(inner)
    elif entry.suffix == ".py" and not name.startswith("test_") and not name.endswith("_test"):
        yield entry


def _file(folder: Path, path: Path, counts: dict[str, int]) -> list[Docstring]:
    counts["python_files"] += 1
    if path.stat().st_size > LARGEST_FILE:
        counts["files_too_large"] += 1
        return []
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:  # parsing is nearly all of the time
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ):  # Python 2, templates, null bytes, very deep
        counts["files_not_parsed"] += 1
        return []
    inner = path.relative_to(folder)
    parts = inner.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return [d for name, node in _defined(module, tree) if (d := _docstring(name, node, inner.as_posix()))]


def _defined(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The module, its classes and functions, and those of classes; below `if` too, not inside functions."""
    yield name, node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    blocks: list[ast.AST] = list(node.body)
    while blocks:
        child = blocks.pop(0)
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _defined(f"{name}.{child.name}", child)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            blocks = [*child.body, *getattr(child, "orelse", []), *blocks]


def _docstring(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, file: str
) -> Docstring | None:
    text = ast.get_docstring(node)
    if text is None:
        return None
    paragraph = text.partition("\n\n")[0]
    sentence = _SENTENCE.match(paragraph)
    end = sentence.end() if sentence else len(paragraph)
    query, rest = " ".join(text[:end].split()), " ".join(text[end:].split())
    if len(query.split()) < QUERY_WORDS or len(rest.split()) < PASSAGE_WORDS:
        return None
    try:
        (query + rest).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no table can hold
        return None
    return Docstring(name, file, getattr(node, "lineno", 1), query, rest)


def _share(name: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{name}".encode(), digest_size=8).digest(), "big") / 2**64


def split_of(name: str) -> str:
    """The split of a docstring, by a hash of its id and the shares in `SPLITS`."""
    share = _share(name, "split")
    for split, width in SPLITS.items():
        share -= width
        if share < 0:
            return split
    return "test"


# -- as a collection ------------------------------------------------------------------------------


def passages(found: Sequence[Docstring]) -> Iterator[Text]:
    """The corpus: the qualified name as title, the docstring without its summary as text."""
    return (Text(d.file, d.line, d.id, d.id, d.passage) for d in found)


def queries(found: Sequence[Docstring]) -> Iterator[Text]:
    """The summaries; `q:` keeps their ids apart from the passages', which some evaluators drop when equal."""
    return (Text(d.file, d.line, f"q:{d.id}", "", d.query) for d in found)


def judgements(found: Sequence[Docstring], split: str, findings: Findings) -> Iterator[Judgement]:
    """One relevant passage a query of the split."""
    del findings  # the other sources' readers report into it; here nothing can be wrong
    return (Judgement(d.file, d.line, f"q:{d.id}", d.id, 1) for d in found if split_of(d.id) == split)
