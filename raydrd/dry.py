"""A dry run: the stages of a config in their order, and what each would do. Nothing is read, no model is looked for.

The recipe itself runs, over a store that takes down each stage in place of running it. So the plan is the recipe's own
and cannot fall behind it. What the data would decide is planned as for a large collection with labels in all splits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from raydrd.flow.lab import Lab, adopted, check_setting, check_tables, plain, train_queries
from raydrd.flow.teachers import Teacher
from raydrd.models.latelayout import Late
from raydrd.models.layout import Layout
from raydrd.outline import artifacts_in, depth_of, outline
from raydrd.publish import measured
from raydrd.recipes import RECIPES
from raydrd.setting import BiEncoderTeacher, CrossEncoderTeacher, Ensemble, Escalation, ReadyScores, Setting
from raydrd.spine.cluster import Cluster
from raydrd.spine.parts import part_name
from raydrd.spine.precision import resolve
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Stage, Store, identify
from raydrd.stages.adopt import Model, adopt, wanted_layout
from raydrd.stages.load import load, sample_dev
from raydrd.stages.score import import_teacher

MANY = 10**9  # rows of every table: more than any `queries.labelled` or `recover.passages`, so samples are planned

# What flow and recipes read of a result to go on; none of these numbers is shown.
_PLACEHOLDERS: dict[str, Any] = {
    "rows": 1, "passages": MANY, "made": 0, "labelled": 0, "suspects": 0, "negatives": 0, "dark": 0, "in_band": 0,
    "pairs": 0, "against": 0.0, "inconsistency": 0.0, "means": {},
}  # fmt: skip
ASIDE = {"sample dev": "dev", "sample preflight": "preflight"}


@dataclass(frozen=True)
class Planned:
    """One stage that a run would make or find: its name, the label of its progress line, its numbers.

    aside: `dev` or `preflight` for work on these small collections.
    """

    stage: str
    label: str
    detail: str
    aside: str = ""


@dataclass
class DryStore(Store):
    """A store that writes nothing: `run` takes down the stage, and gives an artifact without content."""

    planned: list[Planned] = field(default_factory=list)

    def run(self, function: Stage, /, label: str = "", **inputs: Any) -> Artifact:
        """An artifact of which only the identity is real.

        Raises:
            TypeError: an input has no stable identity.
        """
        id_, _ = identify(function, inputs)
        if id_ not in self._seen:
            name, above = function.__name__, artifacts_in(inputs)
            aside = ASIDE.get(label, next((one.manifest["aside"] for one in above if one.manifest["aside"]), ""))
            self.planned.append(Planned(name, label or name, outline(name, inputs), aside))
            manifest = {"attempt": "none", "files": _files(inputs, above), "metrics": _metrics(name, inputs), "aside": aside}
            self._seen[id_] = Artifact(id_, name, self.root / name / id_, manifest)
        return self._seen[id_]


@dataclass(frozen=True)
class Plan:
    """What a config would do, and what cannot be known without its data and models."""

    cfg: Setting
    stages: tuple[Planned, ...]
    unchecked: tuple[str, ...]


def plan(cfg: Setting) -> Plan:
    """The stages of a recipe's config, in order.

    Raises:
        InputError: parts of the config do not go together; as a run would say it.
    """
    store = DryStore(Folder("dry-run"), Cluster(cfg.resources))
    lab = open_lab(cfg, store)
    measured(lab, RECIPES[cfg.recipe].run(cfg, lab))
    return Plan(cfg, tuple(store.planned), tuple(_unchecked(cfg)))


def open_lab(cfg: Setting, store: DryStore) -> Lab:
    """`raydrd.flow.lab.open_lab` over models and data that nobody has looked at."""
    check_setting(cfg)
    source = _source(cfg.student)
    splits = {name: getattr(cfg.data, f"{name}_split") for name in ("train", "dev", "test")}
    data = store.run(load, "load", data=Located({"splits": splits}, cfg.data))
    check_tables(cfg, data)
    start = adopted(store, cfg.student, source, "student before", layers=plain(cfg.student.layers), unseen=True)
    original = start
    if cfg.student.layers is not None and cfg.recover is not None:
        original = adopted(store, cfg.student, source, "student uncut", layers=None, unseen=True)
    teachers = {one: _open_teacher(store, one) for one in (*cfg.teachers(), *cfg.pair_teachers())}
    # Lengths that the config leaves to the model's folder count as 0, and all tokenizers as the same one: see `_unchecked`.
    lengths = {name: getattr(cfg.student, name) or 0 for name in ("query_max_len", "passage_max_len")}
    opened = [member.cfg for teacher in teachers.values() for member in (teacher, *teacher.members)]
    cfg.check_models({"tokenizer": "", "layout": lengths}, {one: {"tokenizer": ""} for one in opened})
    dev = cfg.evaluation
    train_data = train_queries(cfg, store, data, [])
    dev_data = store.run(sample_dev, "sample dev", data=data, passages=dev.dev_passages, queries=dev.dev_queries, seed=dev.seed)
    return Lab(
        cfg=cfg, store=store, precision=resolve(cfg.precision, gpu=False), data=data, train_data=train_data,
        dev_data=dev_data, start=start, original=original, teachers=teachers, dry=True,
    )  # fmt: skip


def _open_teacher(store: DryStore, cfg: Any) -> Teacher:
    if isinstance(cfg, Ensemble | Escalation):
        return Teacher(cfg, members=tuple(_open_teacher(store, member) for member in cfg.members))
    if isinstance(cfg, ReadyScores):
        return Teacher(cfg)
    source = _source(cfg)
    if isinstance(cfg, BiEncoderTeacher):
        layout = wanted_layout(cfg, Layout())
        model = store.run(adopt, "teacher", source=source, layout=layout, layers=plain(cfg.layers))
        return Teacher(cfg, model, model.id)
    new: dict[str, Any] = {}
    if isinstance(cfg, CrossEncoderTeacher) and (cfg.layers is not None or cfg.train is not None):
        new = {"layers": cfg.layers, "new_head": cfg.train is not None, "seed": cfg.seed}
    model = store.run(import_teacher, "teacher", source=source, **new)
    return Teacher(cfg, model, model.id)


def _source(model: Model | Any) -> Located:
    return Located({"model": model.model, "revision": model.revision}, model.model)


# -- what the recipes read of a result ------------------------------------------------------------


def _files(inputs: dict[str, Any], above: list[Artifact]) -> dict[str, int]:
    """Names of the tables that a collection would have: those of its splits, or of the collection it was made from."""
    data = inputs.get("data")
    if isinstance(data, Located):
        tables = [f"queries/{name}" for name, split in data.identity["splits"].items() if split is not None]
        return {f"shards/{name}/{part_name(0, MANY, 'parquet')}": 0 for name in ["corpus", *tables]}
    files = {name: 0 for one in above[:1] for name in one.manifest["files"]}
    if inputs.get("count"):  # make_queries
        files[f"shards/queries/train/{part_name(0, MANY, 'parquet')}"] = 0
    return files


def _metrics(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    found = dict(_PLACEHOLDERS)
    if name in ("adopt", "adopt_late", "import_teacher"):
        found |= {"tokenizer": inputs["source"].identity["model"]}
        if name != "import_teacher":
            found |= {"layout": inputs["layout"].model_dump()}
        if name == "adopt_late":
            late = Late(dim=inputs["late"]["dim"] or 0, pooled=inputs["late"]["pooled"])
            found |= {"late": late.model_dump(), "width": 0, "projection": "unknown"}
    if name in ("embed_tokens", "embed_pooled"):
        found |= {"tokens": 0, "width": 0}
    if isinstance(inputs.get("start"), Artifact):  # a model that was trained
        found |= inputs["start"].metrics
    return found | {"depth": depth_of(inputs)}


# -- the plan as text ------------------------------------------------------------------------------


def _members(cfg: Setting) -> list[Any]:
    """Every teacher with a model of its own."""
    teachers = (*cfg.teachers(), *cfg.pair_teachers())
    members = [one for teacher in teachers for one in getattr(teacher, "members", (teacher,))]
    return [one for one in members if not isinstance(one, ReadyScores)]


def _unchecked(cfg: Setting) -> list[str]:
    """What only the data and the models can tell."""
    members = _members(cfg)
    models = dict.fromkeys(one.model for one in (cfg.student, *members))
    heads = dict.fromkeys(one.model for one in members if isinstance(one, CrossEncoderTeacher) and one.train is None)
    found = [
        f"the collection: {cfg.data.path or cfg.data.source} was not opened, its files and splits are not known to be there",
        f"the models were not looked for: {', '.join(models)}",
        *(f"that {model} has a ranking head" for model in heads),
        "which models share a tokenizer: those that do share their tokens, so stages may fall away",
    ]
    steps = getattr(cfg, "steps", (cfg,))
    if any(getattr(step, "words", None) is not None for step in steps):
        found.append("words: that student and cross-encoder have the same tokenizer")
    if cfg.student.dims is not None or cfg.vectors.dim is not None:
        found.append("student.dims, vectors.dim: that they go with the width of the student's vectors")
    outcomes = ["a sample of what is not larger falls away"]
    outcomes += ["preflight may stop the run (preflight: stop)"] if cfg.preflight == "stop" else []
    outcomes += ["a training that loses on dev is dropped (keep: best)"] if cfg.keep == "best" else []
    if getattr(cfg, "data_progressive", None) is not None:
        outcomes.append("data progressive is left out where no query is confusing")
    return [*found, f"what the data decide: {'; '.join(outcomes)}"]


def counts(made: Plan) -> dict[str, int]:
    """How often a plan trains the student and teachers, and searches, scores and compares for the training queries."""
    kinds: Counter[str] = Counter()
    teachers = {f"train teacher {one.model}" for one in _members(made.cfg)}
    for one in made.stages:
        of_teacher = one.label in teachers
        kinds["trainings of the student"] += one.stage in ("train", "imitate") and not of_teacher
        kinds["trainings of teachers"] += of_teacher
        kinds["searches for train queries"] += one.label.startswith(("search train", "candidates from run"))
        kinds["scorings of what they found"] += one.stage == "take_scores" or one.label.startswith("score train")
        kinds["comparisons of pairs"] += one.stage == "score_duels"
    return dict(kinds)


def render(made: Plan, name: str) -> str:
    """The plan as text: one numbered line a stage; looks at the dev sample and preflights folded into one line each."""
    numbers = ", ".join(f"{what} {n}" for what, n in counts(made).items() if n)
    lines = [f"{name}: {RECIPES[made.cfg.recipe].SUMMARY}", f"stages {len(made.stages)}: {numbers}", ""]
    width = min(60, max(len(one.label) for one in made.stages))
    at = 0
    while at < len(made.stages):
        one = made.stages[at]
        end = at + 1
        while one.aside and end < len(made.stages) and made.stages[end].aside == one.aside:
            end += 1
        if end - at == 1:
            lines.append(f"{at + 1:>7}  {one.label:<{width}}  {one.detail}".rstrip())
        else:
            label = made.stages[end - 1].label.removeprefix("evaluate ")
            kinds = dict.fromkeys(stage.stage for stage in made.stages[at:end])
            lines.append(f"{f'{at + 1}-{end}':>7}  {label:<{width}}  {', '.join(kinds)}")
        at = end
    return "\n".join([*lines, "", "not checked:", *(f"  {line}" for line in made.unchecked)])
