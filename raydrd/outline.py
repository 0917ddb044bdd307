"""What a stage would do, in one line: the numbers that its inputs hold."""

from __future__ import annotations

from typing import Any

from raydrd.config import Frozen
from raydrd.methods.dark import Dark
from raydrd.methods.nested import Nested
from raydrd.methods.objectives import Distil, Losses
from raydrd.methods.tokenwise import Both
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig


def artifacts_in(value: Any) -> list[Artifact]:
    """The artifacts among a stage's inputs, in their order."""
    match value:
        case Artifact():
            return [value]
        case dict():
            return [found for item in value.values() for found in artifacts_in(item)]
        case list() | tuple():
            return [found for item in value for found in artifacts_in(item)]
    return []


def depth_of(inputs: dict[str, Any]) -> int | None:
    """Passages a query: what a search asks for, or what its candidates had; None where it is not in the config."""
    if "share" in inputs:  # what goes on to an expensive teacher
        depth = depth_of({"scored": inputs["scored"]})
        return inputs.get("pairs") or (depth and round(depth * inputs["share"]))
    for name in ("k", "depth"):
        if name in inputs:
            return int(inputs[name])
    rule = inputs.get("rule")
    if isinstance(rule, Dark):
        return rule.built * ((rule.reinforced > 0) + (rule.noisy > 0))
    lists = [one for key in ("candidates", "scored", "cheap", "members") for one in artifacts_in(inputs.get(key))]
    return lists[0].metrics["depth"] if lists else None


def outline(name: str, inputs: dict[str, Any]) -> str:
    """The numbers of a stage that its config holds."""
    get = inputs.get
    depth = depth_of(inputs)
    each = f"up to {depth:,} passages a query" if depth else "as many passages a query as are given"
    match name:
        case "load":
            data, splits = inputs["data"].where, inputs["data"].identity["splits"].values()
            place = f"{data.source} {data.path}" if data.path else data.source
            return f"{place}, splits {', '.join(split for split in splits if split is not None)}"
        case "adopt_late":
            layers, late = get("layers"), inputs["late"]
            cut = f", cut to {layers}" if layers is not None else ""
            kind = "hybrid" if late["pooled"] else "late interaction"
            return f"{inputs['source'].where}{cut}, {kind}" + (f", {late['dim']} numbers a token" if late["dim"] else "")
        case "adopt" | "import_teacher":
            layers = get("layers")
            cut = f", {'layers' if isinstance(layers, list) else 'cut to'} {layers}" if layers is not None else ""
            towers = ", separate towers" if name == "adopt" and inputs["layout"].towers == "separate" else ""
            return str(inputs["source"].where) + cut + towers + (", a new head if it has none" if get("new_head") else "")
        case "sample_dev":
            return f"{inputs['passages']:,} passages, {inputs['queries']:,} queries"
        case "sample_queries":
            return f"{inputs['count']:,} of the labelled ones, if there are more"
        case "make_queries":
            return f"{inputs['count']:,} from passages, up to {inputs['sentences']} a passage"
        case "tokenize":
            return f"for {inputs['tokenizer'].identity}"
        case "search" | "search_tokens" | "bm25_search" | "search_index":
            return f"the best {depth:,} a query"
        case "near_tokens":
            return f"up to {depth:,} a query by their tokens"
        case "rescore_tokens":
            return f"the best {depth:,} of them by MaxSim"
        case "pack_tokens":
            return "a centroid and two bits a number"
        case "measure_late":
            return "against exact MaxSim, on one thread"
        case "cut_vectors":
            return f"to {inputs['dim']} dimensions"
        case "measure_sizes":
            dims = ", ".join(map(str, inputs["dims"])) if inputs["dims"] else "whole and halved"
            return f"{dims} dimensions as float32, int8 and binary"
        case "first_candidates":
            return f"the first {depth:,} of them"
        case "join_candidates":
            return f"{len(inputs['sources'])} sources, {depth:,} a query"
        case "score_pairs" | "score_vectors":
            length = f", {inputs['max_length']} tokens a pair" if get("max_length") else ""
            return each + length
        case "score_lists":
            return f"{each}, in windows of {inputs['window']}, each {inputs['stride']} nearer to the front"
        case "choose":
            shared = get("level") is not None  # then a query has its share on average
            return f"{each.replace('up to', 'on average') if shared else each}, by {inputs['by']}"
        case "share_budget":
            return f"{inputs['share']:g} of all candidates"
        case "assemble":
            joined = [what for what in ("pairs", "dark", "filter") if get(what) is not None]
            return _fields(inputs["rule"]) + (f"; with {', '.join(joined)}" if joined else "")
        case "sample_pairs" | "learn_threshold":
            return _fields(inputs["rule"])
        case "write_dark":
            rule = inputs["rule"]  # as far as it decides the texts: how many of them lists keep does not
            return f"up to {rule.reinforced} reinforced and {rule.noisy} noisy built"
        case "score_duels":
            return f"{inputs['max_length']} tokens{', both orders' if inputs['symmetrize'] else ''}"
        case "train" | "train_reranker" | "imitate":
            words = f" + {inputs['words'].weight:g} words" if get("words") is not None else ""
            return f"{_training(inputs['config'])}; {_terms(inputs['objective'])}{words}"
        case "evaluate":
            return ", ".join(inputs["metrics"])
        case "build_index":
            return str(inputs["factory"])
        case "measure_index":
            return "against exact search, on one thread"
    return ""


def _fields(rule: Frozen) -> str:
    values = rule.model_dump(exclude={"kind", "seed"}, exclude_none=True)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not True and value is not False)


def _training(config: TrainConfig) -> str:
    epochs = config.num_train_epochs
    long = f"{config.max_steps:,} updates" if config.max_steps else f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
    warm = f"{config.warmup_steps:,}" if config.warmup_steps is not None else f"{config.warmup_ratio:.0%}"
    group = f" x {config.train_group_size} passages" if config.train_group_size else ""
    return f"{long} of {config.train_batch_size}{group}, rate {config.learning_rate:g}, warm-up {warm}"


def _terms(objective: Any) -> str:
    if isinstance(objective, Both):
        distil = f", and tokens to pooled ({objective.distil:g})" if objective.distil else ""
        return f"{_terms(objective.objective)}, of pooled vectors and of tokens{distil}"
    if isinstance(objective, Nested):
        return f"{_terms(objective.objective)}, each at {', '.join(map(str, objective.dims))} dimensions"
    if not isinstance(objective, Losses):
        return str(objective.kind)
    named = []
    for term in objective.terms:
        anchor = isinstance(term, Distil) and term.source == "anchor"
        heat = getattr(term, "temperature", 1.0)
        named.append(f"{term.weight:g} {'anchor' if anchor else term.kind}" + (f" (T {heat:g})" if heat != 1 else ""))
    paced = objective.pacing
    return " + ".join(named) + (f", self-paced {paced.rho0:g} to {paced.rho1:g}" if paced is not None else "")
