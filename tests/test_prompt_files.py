"""Prompts in files: what they may say, how they are refused, and what their version decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.models import prompts
from raydrd.models.prompts import MONOT5, PROMPTS, ListPrompt, Prompt, assemble, pieces_of, read_prompt, shares
from raydrd.setting import PromptedTeacher
from raydrd.spine.store import canonical
from raydrd.stages.score import about_scores
from tests.language_models import TEXTS, TOKENIZERS, texts_of

POINT = {"template": "{query}\n{passage}\n?", "answers": ["Yes", "No"]}
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
