"""Prompts in files: what they may say, how they are refused, and what their version decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import DistilBertConfig

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.models import prompts
from raydrd.models.answers import check_prompt
from raydrd.models.prompts import MONOT5, PROMPTS, ListPrompt, Prompt, assemble, pieces_of, read_prompt, shares
from raydrd.setting import PromptedTeacher
from raydrd.spine.store import canonical
from raydrd.stages.score import about_scores
from tests.language_models import TEXTS, TOKENIZERS, language_model, texts_of
from tests.recipes import open_toy, settings, steps

POINT = {"template": "{query}\n{passage}\n?", "answers": ["Yes", "No"]}
CURRICULUM = {"lists": {"graded": 5, "hard": 0, "rest": 0}, "train": steps(1)}
LIST = {"kind": "listwise", "template": "{query}\n{count}:\n{passages}!", "passage": "[{number}] {passage}\n"}


def written(home: Path, values: dict[str, Any], name: str = "mine") -> str:
    (home / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(home / f"{name}.yaml")


def teacher(prompt: Any, **more: Any) -> PromptedTeacher:
    return validate(PromptedTeacher, {"model": "m", "prompt": prompt, **more}, "toy.yaml")


def test_a_file_is_read_when_the_config_is_and_stays_what_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, {**POINT, "kind": "pointwise", "version": 3, "chat": True})
    cfg = teacher(path)
    expected = Prompt(name="mine", edition=3, template=POINT["template"], positive="Yes", negative="No", chat=True)
    assert cfg.prompt == expected
    written(tmp_path, {**POINT, "template": "other {query} {passage}"})
    again = validate(PromptedTeacher, yaml.safe_load(yaml.safe_dump(cfg.model_dump(mode="json"))), "config.yaml of the run")
    assert again == cfg  # what a run wrote down is what it asked, whatever became of the file


def test_a_file_may_extend_another(tmp_path: Path) -> None:
    written(tmp_path, {**POINT, "version": 2}, "base")
    found = read_prompt(written(tmp_path, {"extends": "base.yaml", "chat": True}))
    assert (found.name, found.edition, found.chat, found.template) == ("mine", 2, True, POINT["template"])


def test_the_ready_made_ones_are_the_files_beside_the_program() -> None:
    folder = Path(prompts.__file__).parent
    assert {path.stem for path in folder.glob("*.yaml")} == set(PROMPTS)
    assert all(read_prompt(folder / f"{name}.yaml") == prompt for name, prompt in PROMPTS.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**POINT, "answers": [True, "No"]}, "positive: .*YAML reads a bare Yes.* put it in quotes"),
        ({**POINT, "answers": "Yes"}, r'answers: write the two words, .* for example \["Yes", "No"\]'),
        ({**POINT, "kind": "pairwise"}, "kind: 'pairwise', but the template is pointwise; write kind: pointwise"),
        ({**POINT, "version": 0}, "edition: input should be greater than or equal to 1"),
        ({**POINT, "tempalte": "x"}, "tempalte: unknown field; did you mean 'template'"),
        ({**LIST, "template": "{query}"}, "the template of a listwise prompt needs {query} and, once, {passages}"),
        (
            {**LIST, "template": "{query} {passages} {passages}"},
            "the template of a listwise prompt needs {query} and, once, {passages}",
        ),
        (
            {**LIST, "template": "{query} {passages} {passage}"},
            "the template of a listwise prompt needs {query} and, once, {passages}",
        ),
        ({**LIST, "passage": "({number}) {passage}"}, r"passage: write \[{number}\] and {passage}"),
        ({**LIST, "answers": ["Yes", "No"]}, "answers: unknown field"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = written(tmp_path, values)
    with pytest.raises(InputError, match=f"mine.yaml: {message}") as caught:
        read_prompt(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="toy.yaml: prompt: value error, .*mine.yaml: ") as caught:
        teacher(path)
    assert "\n" not in str(caught.value)


def test_names_and_paths_that_are_not_there() -> None:
    with pytest.raises(
        InputError, match=r"toy.yaml: prompt: .*nix.yaml: no such prompt; write the path of a .yaml file, or one"
    ):
        teacher("nix.yaml")
    with pytest.raises(InputError, match="prompt: 'monot6' is not known; write one of monot5, .*, the path of a .yaml file"):
        assert teacher("monot6").pairwise


def test_an_inline_prompt_is_refused_by_its_field_alone() -> None:
    with pytest.raises(InputError) as caught:
        teacher({"template": "{query}\n{passage}", "positive": "Yes"})
    assert str(caught.value) == "toy.yaml: prompt.negative: this field is required; add it, or set prompt.negative=VALUE"


# -- what enters the fingerprint ----------------------------------------------------------------------


def test_the_version_decides_whose_scores_they_are_and_the_name_does_not() -> None:
    def about(**changes: Any) -> Any:
        return about_scores("prompted", MONOT5.model_copy(update=changes), 64, "fp32")

    assert about(name="other") == about()
    assert about(edition=2) != about() and about(edition=2) != about(edition=3)
    assert about(edition=2, name="other") == about(edition=2)
    assert about(template="{query} {passage}") != about()
    ranked = PROMPTS["rank"]
    assert canonical(ranked.model_copy(update={"name": "other"})) == canonical(ranked)
    assert canonical(ranked.model_copy(update={"edition": 2})) != canonical(ranked)


def test_scores_of_prompts_from_before_they_had_versions_are_still_found() -> None:
    fields = {
        "template": "Query: {query} Document: {passage} Relevant:",
        "positive": "true",
        "negative": "false",
        "chat": False,
    }
    assert canonical(MONOT5) == {"component": "Prompt", "version": 1, "fields": fields}


# -- whether a model can be asked so ------------------------------------------------------------------


def test_what_a_model_cannot_be_asked_is_refused_before_any_work(tmp_path: Path, toy: Path) -> None:
    gpt2, distil = language_model("gpt2", tmp_path / "gpt2"), tmp_path / "distil"
    DistilBertConfig(vocab_size=99).save_pretrained(distil)
    (distil / "model.safetensors").touch()
    plain = Prompt(template="{query}\n{passage}:", positive="Yes", negative="No")
    refused: list[tuple[Path, Any, int, str]] = [
        (gpt2, plain.model_copy(update={"negative": "impossible"}), 96, "the answer 'impossible' is .*, not one known token"),
        (gpt2, PROMPTS["yes_no"], 20, "max_length: 20 has no room for texts in this prompt"),
        (gpt2, plain, 257, "max_length: 257 tokens, but the teacher has 256 positions; write 256 or less"),
        (
            gpt2,
            ListPrompt(template="{query}\n{passages}!"),
            250,
            r"250 tokens, but the teacher has 256 positions, and \d+ of them for its answer",
        ),
        (language_model("llama", tmp_path / "llama"), PROMPTS["yes_no_chat"], 96, "no chat template; write chat: false"),
        (distil, plain, 96, "distilbert is no language model, so it cannot answer; choose another model"),
        (toy / "reranker", plain, 96, "gives a score, not words; write kind: cross_encoder"),
    ]
    for model, prompt, length, message in refused:
        with pytest.raises(InputError, match=message):
            check_prompt(model, prompt, max_length=length, window=2)
        # A run says so before it has as much as read its data.
        values = prompt.model_dump(mode="json")
        short = {"window": 2, "stride": 1} if prompt.listwise else {}
        given = {"kind": "prompted", "model": str(model), "prompt": values, "max_length": length, **short}
        with pytest.raises(InputError, match=message):
            open_toy(settings(toy, "cldrd", teacher=given, curriculum=[CURRICULUM]), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    check_prompt(gpt2, plain, max_length=256)
    check_prompt(language_model("t5", tmp_path / "t5"), MONOT5, max_length=5000)  # relative positions
    with pytest.raises(InputError, match="has 256 positions, and 1 of them for its answer; write 255 or less"):
        check_prompt(gpt2, plain, max_length=256, spare=1)


# -- several passages in one prompt -------------------------------------------------------------------


def test_a_question_about_several_passages() -> None:
    prompt = ListPrompt(template='{"a": 1} {query} of {count}:\n{passages}order {count}:', passage="[{number}]\n{passage}\n")
    asked = prompt.question(2)
    assert asked.template == '{"a": 1} {query} of 2:\n[1]\n{p1}\n[2]\n{p2}\norder 2:'
    tokenizer = TOKENIZERS["byte"]
    texts = texts_of(tokenizer, {"query": TEXTS["query"], "p1": TEXTS["a"], "p2": TEXTS["b"]})
    made = assemble(pieces_of(tokenizer, asked, closed=False), texts, max_length=200)
    whole = f'{{"a": 1}} {TEXTS["query"]} of 2:\n[1]\n{TEXTS["a"]}\n[2]\n{TEXTS["b"]}\norder 2:'
    assert tokenizer.decode(made) == whole


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [
        ([10, 10, 10], 40, (10, 10, 10)),
        ([30, 10, 30], 50, (20, 10, 20)),
        ([30, 1, 30], 50, (24, 1, 24)),  # an odd token is left
        ([9, 40, 20, 9], 58, (9, 20, 20, 9)),
    ],
)
def test_what_a_short_passage_leaves_goes_to_all_longer_ones(lengths: list[int], room: int, kept: tuple[int, ...]) -> None:
    assert shares(0, lengths, room=room) == (0, kept)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="max_length: 512 tokens are too few for 20 passages; write at least 640"):
        teacher("rank")
    assert teacher("rank", max_length=640).listwise
    with pytest.raises(InputError, match="stride: 6 steps over passages of a window of 5; write that or less"):
        teacher("rank", window=5, stride=6)
    with pytest.raises(InputError, match="scale: an order has no scale; remove it"):
        teacher("rank", window=5, stride=5, scale=2)
