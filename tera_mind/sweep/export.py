"""The same sweep in other hands: a W&B sweep definition, and job arrays of a SLURM cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tera_mind.errors import InputError
from tera_mind.sweep.definition import Sweep, Value, written
from tera_mind.sweep.plan import Plan, Task


def wandb_definition(plan: Plan, values: Sequence[str] = ()) -> dict[str, Any]:
    """What `wandb sweep` takes: every run is a `tera-mind sweep ... --only SETTINGS` that does all its stages.

    Settings of a list change together, which a W&B grid cannot say; the first that is different in every entry of
    its list names it. `values` are NAME=VALUE words for `--set`. `InputError` where no setting tells the entries apart.
    """
    sweep = plan.sweep
    tied = {name for names in sweep.tied for name in names}
    names = [name for name in sweep.settings if name not in tied] + [_telling(sweep, own) for own in sweep.tied]
    parameters: dict[str, Any] = {name: {"values": _choices(sweep, name)} for name in sweep.settings if name in names}
    parameters["seed"] = {"values": list(sweep.seeds)}
    options = ["--out", str(plan.out)]
    if values:
        options += ["--set", *values]
    return {
        "name": sweep.name,
        "description": f"{sweep.path.name}, group {sweep.group}; the table also comes from `tera-mind sweep --collect`",
        "method": "grid",
        "program": "tera_mind.cli.main",
        "parameters": parameters,
        "command": [
            "${env}", "${interpreter}", "-m", "${program}", "sweep", str(sweep.path), *options, "--only",
            "${args_no_hyphens}",
        ],
    }  # fmt: skip


def wandb_yaml(plan: Plan, values: Sequence[str] = ()) -> str:
    """The definition as the file that `wandb sweep FILE` reads."""
    return yaml.safe_dump(wandb_definition(plan, values), sort_keys=False, width=110)


def _choices(sweep: Sweep, name: str) -> list[Value]:
    return list({written(point[name]): point[name] for point in sweep.points}.values())


def _telling(sweep: Sweep, tied: Sequence[str]) -> str:
    """The setting of a list whose value says which of its entries is meant."""
    entries = {written([str(point[key]) for key in tied]) for point in sweep.points}
    for name in tied:
        if len(_choices(sweep, name)) == len(entries):
            return name
    raise InputError("W&B grids have no lists: give every entry of list one setting that is different in all of them")


@dataclass(frozen=True)
class Job:
    """An `sbatch` command for the open tasks of a stage; `after` are the stages whose jobs must end first."""

    stage: str
    command: tuple[str, ...]
    after: tuple[str, ...]


def slurm_jobs(plan: Plan, todo: Sequence[Task], batch: Path, words: Sequence[str], jobs: int) -> list[Job]:
    """One array a stage, an array task an open task, and a last job for the table.

    `batch` is slurm/sweep.sbatch, `words` what it passes to `tera-mind sweep`; at most `jobs` tasks of an array run at
    once (0: no limit). Dependencies (`--dependency=afterany:...`) are added on submission, when job numbers are known.
    """
    made: list[Job] = []
    for stage in plan.sweep.stages:
        tasks = plan.of_stage(stage.name)
        numbers = [str(number) for number, task in enumerate(tasks) if task in todo]
        if not numbers:
            continue
        array = ",".join(numbers) + (f"%{jobs}" if jobs else "")
        after = tuple(job.stage for job in made if job.stage in stage.places)
        command = (
            "sbatch", "--parsable", f"--job-name={plan.sweep.name}-{stage.name}", f"--array={array}", *stage.sbatch,
            str(batch), *words, "--stage", stage.name,
        )  # fmt: skip
        made.append(Job(stage.name, command, after))
    if made:
        name = f"--job-name={plan.sweep.name}-table"
        small = ("--cpus-per-task=1", "--output=%x-%j.log")
        command = ("sbatch", "--parsable", name, *small, str(batch), *words, "--collect")
        made.append(Job("table", command, tuple(job.stage for job in made)))
    return made


def with_dependencies(job: Job, numbers: Mapping[str, str]) -> list[str]:
    """The command once the jobs it waits for have their numbers."""
    if not job.after:
        return list(job.command)
    wait = "--dependency=afterany:" + ":".join(numbers[stage] for stage in job.after)
    return [*job.command[:2], wait, *job.command[2:]]
