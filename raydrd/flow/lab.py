"""A run's things, opened and checked before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from raydrd.data.collect import digest
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.flow.teachers import Teacher, found_sources, open_teacher
from raydrd.latesetting import check_late
from raydrd.models.adapters import check_peft
from raydrd.models.layout import Layout, read_layout
from raydrd.setting import BiEncoderTeacher, PromptedTeacher, ReadyScores, Setting, check_sizes
from raydrd.spine.precision import Precision, resolve
from raydrd.spine.progress import say
from raydrd.spine.store import Artifact, Located, Store
from raydrd.stages.adopt import Student, adopt, late_of, located, wanted_layout
from raydrd.stages.indexfile import check_index
from raydrd.stages.late.adopt import adopt_late, late_layout, late_settings
from raydrd.stages.late.ship import require_library
from raydrd.stages.load import load, make_queries, report_load, sample_dev, sample_queries, table

MOST_SCALE = 5.0  # of MaxSim scores, beyond which a softmax over them is all but a maximum


@dataclass
class Lab:
    """One run's things: its config, its store, its data and models. Recipes read it, stages never see it."""

    cfg: Setting
    store: Store
    precision: Precision
    data: Artifact
    train_data: Artifact
    dev_data: Artifact
    start: Artifact
    original: Artifact
    teachers: dict[Any, Teacher]  # by their config; a trained one takes its place
    notes: list[str] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    preflights: list[dict[str, Any]] = field(default_factory=list)
    scales: dict[Any, float] = field(default_factory=dict)
    deeper: dict[str, Artifact] = field(default_factory=dict)  # scored candidates' id -> all that was found
    blended: dict[str, list[Artifact]] = field(default_factory=dict)  # id of several teachers' scores -> what joined them
    student: Artifact | None = None  # as it is now: after the last stage that was kept
    on_segment: Callable[[dict[str, Any]], None] | None = None  # told of each look at dev: see `flow.learn.learn`
    dry: bool = False  # a plan: stages are named, none is run, and there are no numbers to read

    @property
    def teacher(self) -> Teacher:
        """The teacher of the config's own field: what the report compares with."""
        return self.teachers[self.cfg.teacher]

    def fact(self, label: str, **values: float | int | str | None) -> None:
        """Something the method did, for the report."""
        self.facts.append({"label": label, "values": {name: value for name, value in values.items() if value is not None}})


def check_setting(cfg: Setting) -> None:
    """What can be refused before anything is read.

    Raises:
        InputError: parts that do not go together.
    """
    kinds = [member for teacher in cfg.teachers() for member in getattr(teacher, "members", (teacher,))]
    _check_sources(cfg, "candidates.sources", cfg.candidates.sources)
    for number, warm in enumerate(cfg.warm_up):
        _check_sources(cfg, f"warm_up.{number}.sources", warm.sources)
    ready = any(isinstance(one, ReadyScores) for one in kinds)
    if ready and not cfg.data.scores:
        raise InputError("teacher.kind: scores needs data.scores: a Parquet file with query_id, doc_id, score")
    if ready and cfg.queries.count:
        raise InputError("queries.count: queries made from the corpus have no ready-made scores; set queries.count=0")
    if ready and cfg.scores_anew():
        raise InputError(f"teacher.kind: ready-made scores cannot score {cfg.scores_anew()}; name a model as teacher")
    if cfg.queries.labelled is not None and (cfg.data.run or cfg.data.scores):
        raise InputError("queries.labelled: data.run and data.scores are for all train queries; set queries.labelled=null")
    if cfg.data.scores and not ready:
        raise InputError("data.scores: only teacher.kind: scores reads them; set it, or remove data.scores")
    if cfg.recover is not None and cfg.student.layers is None:
        raise InputError("recover: only a student cut by student.layers has anything to recover; set it, or recover=null")
    if cfg.vectors.type != "float32" and cfg.index != "Flat":
        raise InputError(
            f"vectors.type: {cfg.vectors.type} is an index of its own; write index: Flat, or with index: {cfg.index} "
            "type: float32"
        )
    if cfg.data.run and cfg.queries.count:
        raise InputError("queries.count: queries made from the corpus have no candidates in data.run; set queries.count=0")
    for one in kinds:
        if isinstance(one, PromptedTeacher) and one.pairwise:
            raise InputError("teacher.prompt: it compares two passages; a teacher here scores one: monot5 or yes_no")
    if cfg.resources.ray == "off" and any(getattr(one, "engine", "") == "vllm" for one in (*kinds, *cfg.pair_teachers())):
        raise InputError("resources.ray: off, but teacher.engine: vllm runs on Ray; write ray: auto, or engine: transformers")
    for one in kinds:
        if isinstance(one, PromptedTeacher) and one.listwise and cfg.reads_scores():
            raise InputError(
                f"teacher.prompt: it gives an order, and recipe {cfg.recipe} learns scores with this config; write cldrd, "
                "mix with {kind: ordered} terms, or a prompt that scores one passage, such as yes_no"
            )
    for one in cfg.pair_teachers():
        if isinstance(one, PromptedTeacher) and not one.pairwise:
            does = "puts a list in order" if one.listwise else "scores one passage"
            raise InputError(f"pairwise.prompt: it {does}; a pairwise teacher compares two: duot5 or a_or_b")
        if one in kinds:
            raise InputError(
                "pairwise: it is the teacher itself, which scores one passage at a time; name another model, or the same one "
                "with another seed if both are trained here"
            )
        if one.scale != 1.0:
            raise InputError("pairwise.scale: a pairwise teacher's scores become probabilities and take no scale; remove it")
    if any(member.scale != 1.0 for teacher in cfg.teachers() for member in getattr(teacher, "members", ())):
        raise InputError("teacher: scores of several teachers are put on one scale first; scale the whole, not its members")
    if ready and any(one.scale == "fitted" for one in kinds):
        raise InputError(
            "teacher.scale: fitted needs a teacher that can score dev queries; write a number for ready-made scores"
        )
    check_late(cfg)
    cfg.check_parts()


def _check_sources(cfg: Setting, where: str, sources: tuple[str, ...]) -> None:
    if "run" in sources and not cfg.data.run:
        raise InputError(f"{where}: has run, but data.run names no run file; set data.run or remove it")
    if "teacher" not in sources:
        return
    found = searcher(cfg)
    if found is None:
        raise InputError(f"{where}: only a bi_encoder teacher can search a corpus; write [student], [bm25] or both")
    if found.train is not None:
        raise InputError(
            f"{where}: bi_encoder teacher {found.model} would search before its training; write [student], [bm25] or both, "
            "or remove its train"
        )


def searcher(cfg: Setting) -> BiEncoderTeacher | None:
    """The teacher that can search a corpus: the bi-encoder, or the first one of several."""
    members = getattr(cfg.teacher, "members", (cfg.teacher,))
    return next((one for one in members if isinstance(one, BiEncoderTeacher)), None)


def open_lab(cfg: Setting, store: Store) -> Lab:
    """Data read and checked, models found and adopted.

    Raises:
        InputError: anything wrong with config, data or models; before any model has run.
    """
    check_setting(cfg)
    if cfg.student.lora is not None:
        check_peft()
    precision = resolve(cfg.precision, gpu=store.cluster.has_gpu)
    student_source = located(cfg.student)
    wanted = (*cfg.teachers(), *cfg.pair_teachers())
    sources = found_sources(wanted)
    data = store.run(load, data=located_data(cfg.data))
    report_load(data)
    notes = list(data.metrics.get("notes", []))
    check_tables(cfg, data)

    start = adopted(store, cfg.student, student_source, "student before", layers=plain(cfg.student.layers))
    notes += check_shipping(cfg, start, data)
    original = start
    if cfg.student.layers is not None and cfg.recover is not None:
        original = adopted(store, cfg.student, student_source, "student uncut", layers=None)
    teachers = {one: open_teacher(store, one, sources) for one in wanted}
    opened = [member for teacher in teachers.values() for member in (teacher, *teacher.members)]
    cfg.check_models(start.metrics, {one.cfg: one.metrics for one in opened})
    train_data = train_queries(cfg, store, data, notes)
    dev = cfg.evaluation
    dev_data = store.run(sample_dev, "sample dev", data=data, passages=dev.dev_passages, queries=dev.dev_queries, seed=dev.seed)
    return Lab(
        cfg=cfg, store=store, precision=precision, data=data, train_data=train_data, dev_data=dev_data, start=start,
        original=original, teachers=teachers, notes=notes,
    )  # fmt: skip


def adopted(
    store: Store, student: Student, source: Located, label: str, *, layers: int | list[int] | None, unseen: bool = False
) -> Artifact:
    """The student's model as a folder of the store, by the stage of its kind. unseen: nobody has looked at the source."""
    if student.tokens:
        layout = late_layout(student, None if unseen else source.where)
        late, seed = late_settings(student), student.projection_seed
        return store.run(adopt_late, label, source=source, layout=layout, late=late, layers=layers, seed=seed)
    layout = wanted_layout(student, Layout() if unseen else read_layout(source.where))
    return store.run(adopt, label, source=source, layout=layout, layers=layers)


def check_shipping(cfg: Setting, start: Artifact, data: Artifact) -> list[str]:
    """What can be refused of the index to ship once student and collection are known; what is to be noted otherwise.

    Raises:
        InputError: widths that the student does not have, or an index that could not be built at the end.
    """
    width = int(start.metrics["width"])
    if cfg.student.tokens:
        return late_notes(cfg, start)
    check_sizes(cfg, width)
    dim = cfg.vectors.dim or width
    check_index(cfg.factory, width=dim, passages=int(data.metrics["passages"]))
    if dim in (cfg.student.dims or (width,)):
        return []
    return [f"vectors are cut to {dim} of {width} dimensions, a width that the student is not trained for; see student.dims"]


def late_notes(cfg: Setting, start: Artifact) -> list[str]:
    """What is to be noted of a student with token vectors.

    Raises:
        InputError: a token index that FAISS does not know, or no library to check the export with.
    """
    late = late_of(start)
    assert late is not None
    require_library()
    if cfg.late.candidates == "tokens" and cfg.late.index is not None:
        check_index(cfg.late.index, width=late.dim, passages=10**9)  # its rows are tokens; how many, embedding will tell
    notes = []
    own = float(getattr(cfg, "score_scale", None) or getattr(getattr(cfg, "loss", None), "score_scale", None) or 1.0)
    scales = {"score_scale": own, **{f"warm_up.{n}.score_scale": warm.score_scale for n, warm in enumerate(cfg.warm_up)}}
    for where, scale in scales.items():
        if cfg.student.kind == "late_interaction" and scale > MOST_SCALE:
            notes.append(f"{where} is {scale:g}, and MaxSim is a sum over a query's tokens: 1 is what ColBERT takes")
    if start.metrics["projection"] == "drawn":
        learns = cfg.recover is not None and cfg.student.layers is not None
        notes.append(
            f"the model has no projection of its tokens: one to {late.dim} numbers is drawn by seed "
            f"{cfg.student.projection_seed}"
            + ("; the uncut model's token vectors, under the same one, are learnt again first" if learns else "")
        )
    for note in notes:
        say(note)
    return notes


def same_world(lab: Lab, cfg: Setting) -> bool:
    """Whether what a lab has opened is what this config would open."""
    wanted = (*cfg.teachers(), *cfg.pair_teachers())
    same = all(getattr(cfg, name) == getattr(lab.cfg, name) for name in Setting.model_fields)
    return same and all(one in lab.teachers for one in wanted)


def another(lab: Lab, cfg: Any, store: Store) -> Lab:
    """The lab of another config over the same data and models: they are opened (and read through) once."""
    if not same_world(lab, cfg):
        return open_lab(cfg, store)
    wanted = (*cfg.teachers(), *cfg.pair_teachers())
    known = [member for one in wanted for member in (lab.teachers[one], *lab.teachers[one].members)]
    cfg.check_models(lab.start.metrics, {member.cfg: member.metrics for member in known})
    teachers = {one: lab.teachers[one] for one in wanted}
    own: dict[str, Any] = {
        one.name: one.default_factory() for one in fields(lab) if one.default_factory is not MISSING
    }  # what it notes
    own |= {"notes": list(lab.notes), "student": None, "on_segment": None}
    return replace(lab, cfg=cfg, store=store, teachers=teachers, **own)


def check_tables(cfg: Setting, data: Artifact) -> None:
    """What can be refused once the collection is known.

    Raises:
        InputError: queries are missing that the config needs.
    """
    if not table(data, "queries/test").rows:
        raise InputError("data.test_split: there are no test queries; name a split that has judgements")
    if any(one.scale == "fitted" for one in cfg.teachers()) and not table(data, "queries/dev").rows:
        raise InputError("teacher.scale: fitted needs dev queries to be fitted to; name data.dev_split, or write a number")
    if cfg.keep == "best" and not table(data, "queries/dev").rows:
        raise InputError("keep: best chooses by dev queries, and there are none; name data.dev_split, or write keep: last")


def train_queries(cfg: Setting, store: Store, data: Artifact, notes: list[str]) -> Artifact:
    """The collection whose train queries are learnt: the labelled ones, or a sample, and those made from passages.

    Raises:
        InputError: there are none.
    """
    made = cfg.queries
    found = data
    if made.labelled is not None and made.labelled < table(data, "queries/train").rows:
        found = store.run(sample_queries, "sample train queries", data=data, count=made.labelled, seed=made.seed)
        notes.append(f"{made.labelled:,} of {table(data, 'queries/train').rows:,} labelled training queries are used")
    if made.count:
        found = store.run(
            make_queries, "make queries", data=data, labelled=found, count=made.count, sentences=made.sentences, seed=made.seed
        )
        notes.append(f"{found.metrics['made']:,} unlabelled training queries were made from passages")
    if not table(found, "queries/train").rows:
        raise InputError("there is nothing to train on: no train queries; set queries.count to make some from the corpus")
    return found


def located_data(data: Data) -> Located:
    """A collection by its content and how it is read, not by where its files lie."""
    reading = data.model_dump(mode="json", exclude={"path", "corpus", "queries", "qrels", "run", "scores"})
    return Located(identity={"digest": digest(data), "reading": reading, "version": data.version}, where=data)


def plain(layers: int | tuple[int, ...] | None) -> int | list[int] | None:
    return list(layers) if isinstance(layers, tuple) else layers
