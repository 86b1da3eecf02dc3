"""A sweep laid out: runs, and the stages they need, each done once for all runs whose command would be the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tera_mind.errors import InputError
from tera_mind.sweep.definition import Stage, Sweep, Value, fill, written

#: raised when equal commands would make something else
FINGERPRINT_VERSION = 1


@dataclass(frozen=True)
class Run:
    """One combination of settings and a seed; its name follows from them alone."""

    number: int
    settings: Mapping[str, Value]
    seed: int

    @property
    def name(self) -> str:
        return point_name({**self.settings, "seed": self.seed})


@dataclass(frozen=True)
class Task:
    """A stage with its placeholders filled, which one or several runs need.

    `name` is also its folder below the sweep's: `runs/RUN/STAGE`, or `shared/STAGE/SETTINGS` where it serves several
    settings. `fingerprint` covers the command, the content of the recipe and of other settings that it reads with -c,
    and the commands whose outputs it takes, wherever the sweep lies; not the content of stores that `values` name, nor
    the version of the code.
    """

    name: str
    stage: Stage
    folder: Path
    words: tuple[str, ...]
    needs: tuple[Task, ...]
    fingerprint: str
    runs: list[Run] = field(default_factory=list, compare=False, hash=False)

    @property
    def makes(self) -> Path:
        return self.folder / self.stage.makes


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep below the folder `out`, and all tasks in the order in which runs need them."""

    sweep: Sweep
    out: Path
    runs: tuple[Run, ...]
    tasks: tuple[Task, ...]

    def of_stage(self, stage: str) -> list[Task]:
        return [task for task in self.tasks if task.stage.name == stage]

    def of_run(self, run: Run) -> list[Task]:
        return [task for task in self.tasks if run in task.runs]

    def task(self, run: Run, stage: str) -> Task:
        return next(task for task in self.of_run(run) if task.stage.name == stage)


def make_plan(sweep: Sweep, out: Path) -> Plan:
    """Expand the sweep; nothing is written. `InputError` where two runs would have one name."""
    pairs = [(point, seed) for point in sweep.points for seed in sweep.seeds]
    runs = [Run(number, point, seed) for number, (point, seed) in enumerate(pairs)]
    if len({run.name for run in runs}) < len(runs):
        raise InputError("two runs would have the same folder: settings must differ in letters, digits, '.' or '-'")
    recipe_hash = hashlib.sha256(sweep.recipe.read_bytes()).hexdigest()
    tasks: dict[str, Task] = {}
    for run in runs:
        own: dict[str, Task] = {}
        for stage in sweep.stages:
            used = _used(stage, sweep)
            task = _task(sweep, out, run, stage, used, own, recipe_hash)
            own[stage.name] = tasks.setdefault(task.name, task)
            own[stage.name].runs.append(run)
    return Plan(sweep, out, tuple(runs), tuple(tasks.values()))


def point_name(settings: Mapping[str, Value]) -> str:
    """A folder's name: `sections=2_seed=0`."""
    return "_".join(f"{key}={re.sub(r'[^A-Za-z0-9.+-]+', '-', written(value))}" for key, value in settings.items())


def _used(stage: Stage, sweep: Sweep) -> set[str]:
    """Settings, and `seed`, on which a stage depends, also through the stages before it."""
    before = {earlier.name: earlier for earlier in sweep.stages}
    used: set[str] = set()
    for place in stage.places:
        if place in before:
            used |= _used(before[place], sweep)
        elif place == "recipe":
            used |= {name for name in sweep.settings if "." in name}
        elif place in sweep.settings or place == "seed":
            used.add(place)
    return used.union(*(names for names in sweep.tied if used & set(names)))


def _task(
    sweep: Sweep,
    out: Path,
    run: Run,
    stage: Stage,
    used: set[str],
    earlier: Mapping[str, Task],
    recipe_hash: str,
) -> Task:
    everything = {**run.settings, "seed": run.seed}
    settings = {key: value for key, value in everything.items() if key in used}
    name = f"runs/{run.name}/{stage.name}" if settings == everything else f"shared/{stage.name}"
    if settings and settings != everything:
        name += f"/{point_name(settings)}"
    folder = out / name
    recipe = {"-c": str(sweep.recipe)}
    keys = {**sweep.overrides, **{key: value for key, value in run.settings.items() if "." in key}}
    plain = {key: written(value) for key, value in {**sweep.values, **everything}.items()}

    def command(here: str, config: str, places: Mapping[str, str]) -> list[str]:
        words: list[str] = []
        for word in stage.command:
            if word == "{recipe}":
                words += ["-c", config, *(f"--{key}={written(value)}" for key, value in keys.items())]
            else:
                words.append(fill(word, {**plain, **places, "here": here, "recipe": config}))
        return words

    needs = tuple(earlier[before.name] for before in sweep.stages if before.name in stage.places)
    words = command(str(folder), recipe["-c"], {task.stage.name: str(task.makes) for task in needs})
    # the same wherever the sweep lies: places are named by what made them
    alike = command("{here}", recipe_hash, {task.stage.name: task.fingerprint for task in needs})
    text = json.dumps([FINGERPRINT_VERSION, _by_content(alike), stage.makes])
    return Task(name, stage, folder, tuple(words), needs, hashlib.sha256(text.encode()).hexdigest(), [])


def _by_content(words: Sequence[str]) -> list[str]:
    """The command with the files of settings that training reads by what they hold instead of by their names."""
    found = list(words)
    for number, word in enumerate(words[:-1]):
        path = Path(words[number + 1])
        if words[0] == "fit" and word in {"-c", "--config"} and path.is_file():
            found[number + 1] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def select_runs(plan: Plan, wanted: Sequence[str]) -> list[Run]:
    """Runs whose settings are all of `NAME=VALUE`; `InputError` where a name is unknown or none is left."""
    runs = list(plan.runs)
    for text in wanted:
        name, equals, value = text.partition("=")
        if not equals or name not in {*plan.sweep.settings, "seed"}:
            raise InputError(f"--only takes NAME=VALUE of {', '.join(plan.sweep.settings)} or seed, got {text!r}")
        # W&B writes values as Python does
        runs = [r for r in runs if value in {written(v := {**r.settings, "seed": r.seed}[name]), str(v)}]
    if not runs:
        raise InputError(f"no run has {', '.join(wanted)}")
    return runs
