"""A collection from docstrings: what becomes a query, what a passage, and what is left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from raydrd.data import collect as stage
from raydrd.data import pydocs
from raydrd.data.pydocs import Root
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.spine.storage import Folder

SUMMARY = "Return the {} thing, e.g. from os.path, of a tree."
REST = "This passage about {} goes on\n    over two lines " + "with word after word " * 5 + "to its end."


def docstring(name: str) -> str:
    return f'"""{SUMMARY.format(name)}\n\n    {REST.format(name)}\n    """'


def passage(name: str) -> str:
    return " ".join(REST.format(name).split())


def package(root: Path) -> Path:
    """alpha (module, class, method, functions below if), and files that must not be read."""
    files = {
        "alpha/__init__.py": docstring("module") + "\n",
        "alpha/shapes.py": f'''
class Shape:
    {docstring("class")}

    def area(self):
        {docstring("method")}

        def inner():
            {docstring("hidden")}

    @property
    def short(self):
        """Too short a summary.

        {REST}
        """

    def bare(self):
        """Return the area of this very shape."""

if True:
    async def later():
        {docstring("later")}
''',
        "alpha/copy.py": f"def again():\n    {docstring('method')}\n",
        "alpha/old.py": f"print 'python 2'\ndef f():\n    {docstring('python 2')}\n",
        "alpha/tests/helper.py": f"def f():\n    {docstring('tests')}\n",
        "alpha/test_shapes.py": f"def f():\n    {docstring('test file')}\n",
        "alpha/plain.py": "x = 1\n",
        "raydrd/mine.py": f"def f():\n    {docstring('ourselves')}\n",
        "alpha-1.0.dist-info/not.py": f"def f():\n    {docstring('dist-info')}\n",
        "beta.py": f"def f():\n    {docstring('beta')}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_docstrings_become_queries_and_passages(tmp_path: Path) -> None:
    found, counts = pydocs.read([Root(package(tmp_path))])
    assert {d.id: (d.query, d.passage) for d in found} == {
        name: (SUMMARY.format(word), passage(word))
        for name, word in {
            "alpha": "module",
            "alpha.copy.again": "method",  # the same docstring as Shape.area: the first by id stays
            "alpha.shapes.Shape": "class",
            "alpha.shapes.later": "later",
            "beta.f": "beta",
        }.items()
    }
    assert [d.id for d in found] == sorted(d.id for d in found)
    assert counts["files_not_parsed"] == 1 and counts["duplicates"] == 1
    assert counts["python_files"] == 6  # alpha: 5 with old and plain, beta


def test_the_summary_is_not_in_the_passage(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        'def f():\n    """Find the first of several matching things. ' + "More of it here. " * 6 + '"""\n'
    )
    ((only,), _) = pydocs.read([Root(tmp_path)])
    assert only.query == "Find the first of several matching things."
    assert only.passage == " ".join(["More of it here."] * 6)
    assert (only.id, only.file, only.line) == ("m.f", "m.py", 1)


def test_only_the_named_packages_are_read(tmp_path: Path) -> None:
    found, _ = pydocs.read([Root(package(tmp_path), frozenset({"beta"}))])
    assert [d.id for d in found] == ["beta.f"]


def test_files_over_the_limit_are_counted_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "LARGEST_FILE", 100)
    found, counts = pydocs.read([Root(package(tmp_path), frozenset({"beta"}))])
    assert found == [] and counts["files_too_large"] == 1


def many(root: Path, n: int) -> Path:
    body = "\n".join(f"def f{i}():\n    {docstring(f'number {i}')}\n" for i in range(n))
    root.mkdir(exist_ok=True)
    (root / "many.py").write_text(body)
    return root


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source pydocs reads 200 functions of one module instead of this Python's library."""
    place = many(tmp_path / "lib", 200)
    monkeypatch.setattr(pydocs, "roots", lambda packages: [Root(place)])


@pytest.mark.usefixtures("world")
def test_a_limit_keeps_a_fixed_choice() -> None:
    full, _ = pydocs.build(Data(source="pydocs"))
    fewer, _ = pydocs.build(Data(source="pydocs", limit=100))
    fewest, _ = pydocs.build(Data(source="pydocs", limit=50))
    assert [len(full), len(fewer), len(fewest)] == [200, 100, 50]
    assert set(fewest) < set(fewer) < set(full) and fewer == sorted(fewer)
    assert fewest == pydocs.build(Data(source="pydocs", limit=50))[0]


@pytest.mark.usefixtures("world")
def test_collect_writes_docstrings_like_any_collection(tmp_path: Path) -> None:
    metrics = stage.collect(Data(source="pydocs"), out=Folder.of(tmp_path / "out"))
    assert metrics["passages"] == 200 and metrics["train"] + metrics["dev"] + metrics["test"] == 200
    # 200 draws of 0.7, 0.1, 0.2 by hash: within four standard deviations, and never another number.
    assert abs(metrics["train"] - 140) < 26 and abs(metrics["dev"] - 20) < 17 and abs(metrics["test"] - 40) < 23
    assert (metrics["warning_count"], metrics["python_files"], metrics["dev_carved"]) == (0, 1, False)
    out = Folder.of(tmp_path / "out")
    files = {name.rpartition("/")[0]: name for name in out.files()}
    corpus = out.read_table(files["corpus"]).to_pylist()
    for row in out.read_table(files["queries/test"]).to_pylist():
        ((doc,), (grade,)) = row["doc_rows"], row["grades"]
        name = corpus[doc]["doc_id"]
        number = name.removeprefix("many.f")
        assert (row["query_id"], grade) == (f"q:{name}", 1)
        assert row["text"] == SUMMARY.format(f"number {number}")
        assert corpus[doc]["text"] == f"{name} {passage(f'number {number}')}"


@pytest.mark.usefixtures("world")
def test_two_collections_are_the_same_bytes(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        out = Folder.of(tmp_path / name)
        stage.collect(Data(source="pydocs", limit=60), out=out)
        hashes.append({f: hashlib.sha256(out.read_bytes(f)).hexdigest() for f in out.files()})
    assert hashes[0] == hashes[1] and len(hashes[0]) == 5


def test_the_digest_names_versions_not_files() -> None:
    standard, numpy = (pydocs.identity(Data(source="pydocs", packages=p)) for p in ("stdlib", ("numpy",)))
    assert "==" not in standard and "numpy==" in numpy and numpy.startswith(standard)
    digests = {stage.digest(Data(source="pydocs", packages=p)) for p in ("stdlib", ("numpy",), "all")}
    assert len(digests) == 3
    assert "raydrd" not in pydocs.identity(Data(source="pydocs", packages="all"))


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match="no Python source of 'no_such_package_here'"):
        pydocs.roots(("json", "no_such_package_here"))


def test_the_standard_library_is_found() -> None:
    (root,) = pydocs.roots("stdlib")
    assert (root.folder / "json" / "decoder.py").is_file() and root.only is None
