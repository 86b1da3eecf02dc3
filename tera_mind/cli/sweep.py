"""`tera-mind sweep`: many runs from one file, here or on a cluster, into one table and one figure."""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tera_mind
from tera_mind.errors import InputError, MissingFileError
from tera_mind.formats.atomic import atomic_file
from tera_mind.sweep.definition import read_sweep
from tera_mind.sweep.execute import STOPPED, Result, Workers, execute, seconds_left
from tera_mind.sweep.export import slurm_jobs, wandb_yaml, with_dependencies
from tera_mind.sweep.plan import Plan, Run, Task, make_plan, select_runs
from tera_mind.sweep.results import as_markdown, collect, write_tables
from tera_mind.sweep.state import LOG, Marker, state_of

_DESCRIPTION = """\
Do all runs that a YAML file describes: a base recipe, settings that vary, seeds, and the stages of a run as tera-mind
commands. A stage that several runs would do alike is done once. What is finished is skipped, so the same command goes
on after an interruption or a failure; a failed stage stops its own run and no other. A stage is done again, with
--overwrite, where its command, its recipe or a stage before it has changed; a store that changed under the same name,
or other code, is not noticed: take another --out then. Writes sweep.csv, sweep.json,
sweep.md and figure.png, with the spread over seeds, and the folder comparison where the file asks for tests.
The file's format: tera_mind/sweep/definition.py."""

_EPILOG = """\
examples:
  tera-mind sweep experiments/ablations/demo/steps.yaml --dry-run
  tera-mind sweep experiments/ablations/demo/steps.yaml --jobs 2
  tera-mind sweep experiments/ablations/sections.yaml --set brain=brains/638850.zarr --launcher slurm
  tera-mind sweep experiments/ablations/steps.yaml --only steps=15 seed=0
  tera-mind sweep experiments/ablations/steps.yaml --export wandb steps.wandb.yaml && wandb sweep steps.wandb.yaml

exit code: 0 all done, 1 some failed (named at the end), 2 bad input (nothing was run), 75 stopped by a signal with
training saved, whether or not others had failed: the same command goes on."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind sweep",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the sweep, for example one of experiments/ablations")
    add("--out", type=Path, metavar="DIR", help="folder for everything (default: runs/NAME of the file)")
    add("--launcher", choices=("local", "slurm"), default="local", help="where the work is done (default: %(default)s)")
    add("--jobs", type=int, metavar="N", help="stages at once (default: 1; slurm: no limit)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="instead of the file's `values`")
    add("--only", nargs="+", default=[], metavar="NAME=VALUE", help="only runs with these settings")
    add("--stage", metavar="NAME", help="only this stage, where those before it are done")
    add("--task", type=int, metavar="N", help="only run N, or with --stage its Nth task (for job arrays)")
    add("--collect", action="store_true", help="only write table and figure of what is done")
    add("--overwrite", action="store_true", help="do stages again whose command, recipe or earlier stage has changed")
    add("--prefix", default="", metavar="WORDS", help="words before every command, such as srun")
    add("--export", nargs=2, metavar=("wandb", "FILE"), help="write a W&B sweep definition and stop")
    add("--dry-run", action="store_true", help="print runs, commands, and what is done already")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {options.jobs}")
    values = dict(_pair(text) for text in options.set)
    sweep = read_sweep(options.file, values)
    plan = make_plan(sweep, options.out or Path("runs") / sweep.name)
    if options.collect:
        return write_results(plan)
    # imported here: checking commands takes their parsers, and Lightning's takes seconds
    from tera_mind.cli.sweep_check import check_commands, check_metrics

    tasks = choose_tasks(plan, options)
    check_metrics(sweep)
    if options.export is not None:
        check_commands(tasks)
        return export(plan, options)
    states = {task.name: state_of(task) for task in plan.tasks}
    open_tasks = [task for task in tasks if states[task.name] != "done"]
    check_commands(open_tasks)
    changed = [task for task in open_tasks if states[task.name] == "changed"]
    if changed and not options.overwrite and not options.dry_run:
        raise InputError(
            f"{changed[0].folder} was made with other settings than the file has now (and {len(changed) - 1} more): "
            "give --overwrite to do these again, or another --out"
        )
    if options.dry_run and options.launcher == "local":
        return show(plan, tasks, states)
    if options.launcher == "slurm":
        return submit(plan, open_tasks, options)
    whole = options.stage is None and options.task is None
    failures, stopped = work(plan, tasks, options)
    code = write_results(plan) if whole else 0
    return STOPPED if stopped else 1 if failures else code


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set takes NAME=VALUE, got {text!r}")
    return name, value


def choose_tasks(plan: Plan, options: argparse.Namespace) -> list[Task]:
    """The tasks that --only, --stage and --task leave, in the plan's order."""
    runs: Sequence[Run] = select_runs(plan, options.only) if options.only else plan.runs
    stages = [stage.name for stage in plan.sweep.stages]
    if options.stage is not None:
        if options.stage not in stages:
            raise InputError(f"no stage {options.stage!r}: there are {', '.join(stages)}")
        found = plan.of_stage(options.stage)
        if options.task is not None:
            return [found[_within(options.task, len(found), "tasks")]]
        return [task for task in found if any(run in task.runs for run in runs)]
    if options.task is not None:
        runs = [plan.runs[_within(options.task, len(plan.runs), "runs")]]
    return [task for task in plan.tasks if any(run in task.runs for run in runs)]


def _within(number: int, count: int, what: str) -> int:
    if not 0 <= number < count:
        raise InputError(f"there are {count} {what}, numbered from 0, got --task {number}")
    return number


def show(plan: Plan, tasks: Sequence[Task], states: Mapping[str, str]) -> int:
    """What would be done: every run, and every command once."""
    print(f"{plan.sweep.name}: {len(plan.runs)} runs, {len(tasks)} tasks, below {plan.out}")
    for run in plan.runs:
        own = [task for task in plan.of_run(run) if task in tasks]
        if own:
            done = sum(states[task.name] == "done" for task in own)
            print(f"  run {run.number}  {run.name}: {done} of {len(own)} stages done")
    for task in tasks:
        print(f"{states[task.name]:<8} {task.name}\n         tera-mind {shlex.join(task.words)}")
    print("dry run: nothing was done")
    return 0


def export(plan: Plan, options: argparse.Namespace) -> int:
    kind, path = options.export[0], Path(options.export[1])
    if kind != "wandb":
        raise InputError(f"--export knows wandb, got {kind!r}")
    with atomic_file(path) as partial:
        partial.write_text(wandb_yaml(plan, options.set), encoding="utf-8")
    print(f"W&B sweep: {path}; start it with: wandb sweep {path}")
    return 0


def work(plan: Plan, tasks: Sequence[Task], options: argparse.Namespace) -> tuple[list[Result], bool]:
    """Do the tasks, a line each as they end; those that failed or were blocked, and whether a signal stopped some."""
    environment = {"WANDB_RUN_GROUP": plan.sweep.group}
    jobs, workers = options.jobs or 1, Workers()
    known: dict[str, list[float]] = {}
    for task in plan.tasks:
        marker = Marker.read(task.folder)
        if marker is not None and marker.status == "done":
            known.setdefault(task.stage.name, []).append(marker.seconds)
    left = [task for task in tasks if state_of(task) != "done"]
    print(f"{plan.sweep.name}: {len(left)} of {len(tasks)} tasks to do, {jobs} at once{_left(left, known, jobs)}")
    failures, stopped, ended, start = [], False, 0, time.monotonic()
    with _signals(workers):
        for result in execute(
            left,
            jobs=jobs,
            prefix=shlex.split(options.prefix),
            environment=environment,
            workers=workers,
            overwrite=options.overwrite,
        ):
            ended += 1
            left = [task for task in left if task is not result.task]
            if result.outcome == "done":
                known.setdefault(result.task.stage.name, []).append(result.seconds)
            words = f": {result.reason}" if result.reason else f" in {result.seconds:.0f} s"
            print(
                f"[{ended}/{ended + len(left)}] {result.task.name} {result.outcome}{words}{_left(left, known, jobs)}",
                flush=True,
            )
            stopped |= result.outcome == "stopped"
            if result.outcome in {"failed", "blocked"}:
                failures.append(result)
    print(f"took {_duration(time.monotonic() - start)}")
    for result in failures:
        where = f" ({result.task.folder / LOG})" if result.outcome == "failed" else ""
        print(f"{result.outcome}: {result.task.name}: {result.reason}{where}")
    if failures or stopped:
        print("give the same command again to do what is missing")
    return failures, stopped


@contextmanager
def _signals(workers: Workers) -> Iterator[None]:
    """Hand SIGTERM and SIGUSR1 on to what runs: training saves itself, and nothing more is started."""

    def stop(signum: int, _: Any) -> None:
        workers.stop(signum)

    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _left(left: Sequence[Task], known: Mapping[str, Sequence[float]], jobs: int) -> str:
    seconds = seconds_left(left, known, jobs) if left else None
    return "" if seconds is None else f"; about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def write_results(plan: Plan) -> int:
    """Table and figure of what is done; exit code 0."""
    from tera_mind.report.sweep_figure import sweep_figure

    table = collect(plan)
    paths = write_tables(table, plan.out)
    print(as_markdown(table), end="")
    if any(value["value"] is not None for row in table["runs"] for value in row["values"]):
        drawing = sweep_figure(table)
        for name, data in (("figure.png", drawing.png), ("figure.pdf", drawing.pdf)):
            with atomic_file(plan.out / name) as partial:
                partial.write_bytes(data)
        print(drawing.caption)
        print(f"figure: {plan.out / 'figure.png'}")
    print(f"table: {paths[0]}")
    if plan.sweep.table.compare is not None:
        from tera_mind.cli.sweep_compare import write_comparisons

        write_comparisons(plan)
    return 0


def submit(plan: Plan, todo: Sequence[Task], options: argparse.Namespace) -> int:
    """Submit one job array a stage, each after those it needs, and a last job for the table."""
    batch = Path(tera_mind.__file__).resolve().parents[1] / "slurm" / "sweep.sbatch"
    if not batch.is_file():
        raise MissingFileError(f"no {batch}: submit from a clone of the repository")
    words = [str(plan.sweep.path), str(plan.out)]
    words += ["--set", *options.set] if options.set else []
    words += ["--overwrite"] if options.overwrite else []
    made = slurm_jobs(plan, todo, batch, words, options.jobs or 0)
    if not options.dry_run and shutil.which("sbatch") is None:
        raise MissingFileError("no sbatch here: run this on a machine of the cluster, or with --launcher local")
    numbers: dict[str, str] = {}
    for job in made:
        if options.dry_run:
            numbers[job.stage] = f"<{job.stage}>"
            print(shlex.join(with_dependencies(job, numbers)))
            continue
        command = with_dependencies(job, numbers)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (sbatch, words of the file)
        if done.returncode:
            raise InputError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
        numbers[job.stage] = done.stdout.strip().partition(";")[0]
        print(f"job {numbers[job.stage]}: {job.stage}")
    if not made:
        print("all is done")
        return write_results(plan)
    if options.dry_run:
        print("dry run: nothing was submitted")
    else:
        print(f"submitted; table and figure will lie in {plan.out}")
    return 0
