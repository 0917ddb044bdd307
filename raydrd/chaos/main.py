"""The command line of the chaos job: runs killed at random moments must end as an undisturbed one does."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydrd.chaos.compare import differences, reports_differ
from raydrd.chaos.disturbed import Ended, OpenCluster, Place, carry_out
from raydrd.chaos.moments import KINDS, Kill, spread
from raydrd.chaos.notes import Notes, Repeats, models, repeats
from raydrd.errors import InputError

KILLS_A_RUN = 5  # unless --runs says otherwise
HEADER = f"{'kill':>4}  {'run':>3}  {'kind':<12}  {'second':>7}  {'stage':<34}  outcome"

EPILOG = """examples:
  python jobs/chaos.py configs/quickstart.yaml --kills 20
  python jobs/chaos.py configs/quickstart.yaml data.limit=400 resources.ray=off --kills 3 --runs 1
  python jobs/chaos.py configs/quickstart.yaml --kills 8 --kinds driver,actor,worker
  python jobs/chaos.py configs/quickstart.yaml --kills 4 --kinds node --json chaos.json

kinds:
  driver   the run's own process, half of the times with all that it started; then the same command is started again
  actor    a process of Ray that works on shards: embedding, searching, scoring
  worker   a training worker of Ray
  node     one of several raylets on this machine, with all its processes, while it has work; a new one comes after 5 s
With actor or node, small inputs of embedding, search and scoring go to actors too; else the driver computes them itself.
exit codes: 0 all identical, 1 something differs or never ended, 2 something in the command must be changed."""


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="jobs/chaos.py",
        description="Run a config once undisturbed and several times in fresh stores with processes killed at random "
        "moments, start again what was killed, and compare every artefact by its content.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a YAML file, as in raydrd run")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields to change, as in raydrd run")
    parser.add_argument("--kills", type=int, default=20, help="how many in all (default: 20)")
    parser.add_argument("--runs", type=int, help=f"over how many runs they are spread (default: {KILLS_A_RUN} kills a run)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims (default: 0)")
    parser.add_argument("--kinds", default="driver", help=f"what is killed, in turn: {','.join(KINDS)} (default: driver)")
    parser.add_argument("--patience", type=float, help="seconds until a run counts as hung (default: 10 undisturbed runs)")
    parser.add_argument("--work", type=Path, help="where the runs lie (default: a temporary folder, kept if something differs)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str], open_cluster: OpenCluster | None = None) -> int:
    """Kill, compare, tell; 0 when everything is identical, 1 when not, 2 when the input is wrong."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are stopped too
    try:
        kinds = checked(options)
        work = options.work or Path(tempfile.mkdtemp(prefix="raydrd-chaos-"))
        found = chaos(options, kinds, work.resolve(), open_cluster if "node" in kinds else None)
    except InputError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if found["verdict"] == 0 and options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    elif options.work is None:
        print(f"the runs are kept in {work}")
    print(f"{found['identical']} of {options.kills} kills: identical artefacts", flush=True)
    return int(found["verdict"])


def checked(options: argparse.Namespace) -> tuple[str, ...]:
    """The kinds of kill, once everything that can be refused before any work has been looked at.

    Raises:
        InputError: an option or the config is wrong, or the run has nothing of a kind to kill.
    """
    from raydrd.session import read_config

    kinds = tuple(kind.strip() for kind in options.kinds.split(",") if kind.strip())
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--kinds {','.join(unknown)}: write some of {','.join(KINDS)}")
    runs = 1 if options.runs is None else options.runs
    if min(options.kills, runs, len(kinds)) < 1:
        raise InputError("--kills, --runs and --kinds: at least one each")
    if options.work and options.work.exists() and any(options.work.iterdir()):
        raise InputError(f"--work {options.work}: not empty; runs need fresh stores, name another folder")
    resources = read_config(options.config, options.overrides).resources
    others = [kind for kind in kinds if kind != "driver"]
    if others and resources.ray == "off":
        raise InputError(f"--kinds {','.join(others)}: resources.ray=off starts no such process; leave out resources.ray=off")
    if "worker" in kinds and resources.train_workers == 0:
        raise InputError("--kinds worker: resources.train_workers=0 trains in the driver; write 1 or more")
    return kinds


def chaos(options: argparse.Namespace, kinds: tuple[str, ...], work: Path, open_cluster: OpenCluster | None) -> dict[str, Any]:
    """All runs, and what they say."""

    def place(name: str) -> Place:
        return Place(work / name, [options.config, *options.overrides], spread=bool({"actor", "node"} & {*kinds}))

    calm = place("undisturbed")
    say(f"undisturbed run: {calm.home}")
    patience = options.patience or 86_400.0
    first = carry_out(calm, [], seed=0, patience=patience, told=lambda _: None, open_cluster=open_cluster)
    if first.error:
        raise InputError(f"the undisturbed run {first.error}")
    say(f"undisturbed run: {first.seconds:.0f} s")
    base = told_work(calm)
    patience = options.patience or max(600.0, 10 * first.seconds)
    runs = options.runs or max(1, round(options.kills / KILLS_A_RUN))
    plans = spread(options.kills, seconds=first.seconds, kinds=kinds, runs=runs, seed=options.seed)
    print(HEADER, flush=True)
    made: list[dict[str, Any]] = []
    number = 0

    def told(line: dict[str, Any]) -> None:
        nonlocal number
        if "kill" not in line:  # else its outcome has changed
            number += 1
            line |= {"kill": number, "run": len(made) + 1}
        print(row(line), flush=True)

    while plans:
        kills = plans.pop(0)
        here = place(f"disturbed-{len(made) + 1}")
        ended = carry_out(here, kills, seed=options.seed + len(made), patience=patience, told=told, open_cluster=open_cluster)
        one = judged(calm, here, ended, base)
        made.append(one)
        say(sentence(len(made), one))
        if ended.unspent and not ended.error:
            if not ended.kills and ended.seconds < ended.unspent[0].wait:
                plans.append(in_time(ended.unspent, ended.seconds))
                continue
            if not ended.kills:
                say(f"no {ended.unspent[0].kind} was at work for so long; {len(ended.unspent)} kills are left undone")
                break
            plans.append(again_early(ended.unspent))
        if not one["differences"]:
            shutil.rmtree(here.home, ignore_errors=True)
    identical = sum(len(one["kills"]) for one in made if not one["differences"])
    return {
        "command": f"python jobs/chaos.py {' '.join([options.config, *options.overrides])}",
        "kills": options.kills,
        "kinds": kinds,
        "seed": options.seed,
        "undisturbed": {"seconds": round(first.seconds, 1), "work": base},
        "runs": made,
        "identical": identical,
        "verdict": 0 if identical == options.kills and not any(one["differences"] for one in made) else 1,
    }


def again_early(kills: list[Kill]) -> list[Kill]:
    """Kills that came too late for one run, for another one: the first of them in its first half."""
    return [Kill(kills[0].kind, kills[0].wait / 2, kills[0].alone), *kills[1:]]


def in_time(kills: list[Kill], seconds: float) -> list[Kill]:
    """Kills of a run that was over before the first of them, for another that takes as long: the machine is faster now."""
    share = 0.9 * seconds / sum(kill.wait for kill in kills)
    return [replace(kill, wait=kill.wait * share) for kill in kills]


def told_work(place: Place) -> dict[str, dict[str, int]]:
    """What each kind of model was asked in this run: rows or pairs, those of them again, those again though finished."""
    notes = Notes(place.home / "notes").look()
    return {name: vars(repeats(notes, name)) for name in models(notes)}


def judged(calm: Place, here: Place, ended: Ended, base: dict[str, dict[str, int]]) -> dict[str, Any]:
    """One disturbed run against the undisturbed one."""
    found = [f"the run {ended.error}"] if ended.error else []
    if not ended.error:
        found += differences(calm.store, here.store) + reports_differ(calm.run, here.run)
    work = told_work(here)
    nothing = vars(Repeats(0, 0, 0))
    for name, counts in work.items():
        before = base.get(name, nothing)
        if counts["wrong"] > before["wrong"]:
            found.append(f"{name}: {counts['wrong']} were computed again although their shard was finished")
        if counts["asked"] - counts["again"] != before["asked"] - before["again"] and not ended.error:
            found.append(f"{name}: asked for other rows than in the undisturbed run")
    return {
        "seconds": round(ended.seconds, 1), "starts": ended.starts, "kills": ended.kills, "work": work, "differences": found,
    }  # fmt: skip


def row(line: dict[str, Any]) -> str:
    """One kill of the table."""
    return (
        f"{line['kill']:>4}  {line['run']:>3}  {line['kind']:<12}  {line['second']:>5.1f} s  {line['stage'][:34]:<34}  "
        f"{line['outcome']}"
    )


def sentence(number: int, one: dict[str, Any]) -> str:
    """What became of a disturbed run."""
    again = ", ".join(f"{name} {c['again']:,} of {c['asked']:,}" for name, c in one["work"].items())
    found = one["differences"]
    verdict = "\n  ".join([f"{len(found)} differences", *found]) if found else "identical"
    told = f"computed again, in shards that were in flight: {again}" if again else "no model was asked in a shard"
    return f"run {number}: {len(one['kills'])} kills, {one['starts']} starts, {one['seconds']:.0f} s; {told}; {verdict}"


def say(line: str) -> None:
    print(line, flush=True)
