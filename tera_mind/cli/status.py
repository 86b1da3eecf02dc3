"""`tera-mind status`: how far the generation of a volume is, and who is at it."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from tera_mind.errors import InputError
from tera_mind.sampling.ledger import Ledger
from tera_mind.sampling.progress import Running, Snapshot, snapshot
from tera_mind.sampling.progress_map import text_map, write_figure

EPILOG = """\
examples:
  tera-mind status volume.zarr
  tera-mind status volume.zarr --figure progress.png
  tera-mind status volume.zarr --verify

A worker that has been silent for two minutes counts as dead: another takes its unit over, or the same `tera-mind
generate` command given again does.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tera-mind status",
        description="Say how far a volume is: what is done, running and failed, the remaining time, and where.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("volume", type=Path, help="volume that `tera-mind generate` is writing, or has written")
    add("--figure", type=Path, default=None, help="write the map as a picture (.png)")
    add("--verify", action="store_true", help="read every shard that is done and compare it with its checksum")
    return made


def run(arguments: Sequence[str]) -> int:
    """Exit code 0; 1 where shards are not as they were written."""
    options = parser().parse_args(arguments)
    if options.figure is not None and options.figure.suffix != ".png":
        raise InputError(f"--figure is a .png file, got {options.figure}")
    if not options.volume.exists():
        raise InputError(f"nothing is at {options.volume}: name a volume of `tera-mind generate`")
    ledger = Ledger.open(options.volume)
    state = snapshot(ledger)
    print(summary(ledger, state))
    print(text_map(ledger, state))
    if options.figure is not None:
        write_figure(ledger, state, options.figure, headline(ledger, state))
        print(f"figure: {options.figure}")
    return verify(ledger) if options.verify else 0


def headline(ledger: Ledger, state: Snapshot) -> str:
    done = f"{state.done / state.total:.1%}" if state.total else "nothing to do"
    return f"{ledger.volume.name}: {'complete' if ledger.finished else done + ' done'}"


def summary(ledger: Ledger, state: Snapshot) -> str:
    """The facts of a volume's progress, a line each."""
    rows = ledger.rows()
    units = [task for task in ledger.tasks if task.unit is not None]
    done = sum(task.name in state.finished for task in units)
    planes = len(ledger.tasks) - len(units)
    spent = math.fsum(row.seconds for row in rows.values())
    lines = [
        headline(ledger, state),
        f"  units      {done} of {len(units)} done; pyramids {len(state.finished) - done} of {planes}",
        f"  written    {state.bytes / 2**20:.1f} MiB in {sum(len(row.files) for row in rows.values())} shards",
        f"  spent      {duration(spent)} of workers' time by {len({row.worker for row in rows.values()})} worker(s)",
    ]
    if not ledger.finished:
        left = "unknown" if state.remaining_s is None else duration(state.remaining_s)
        lines.append(f"  remaining  {left}")
        lines += [f"  running    {running_words(each)}" for each in state.running]
        lines += [f"  failed     {name}: {reason}" for name, reason in sorted(state.failed.items())]
        if not any(not each.lease.expired for each in state.running):
            lines.append("  no worker is at it: give the `tera-mind generate` command that began it again to go on")
    return "\n".join(lines)


def running_words(each: Running) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.lease.since))
    silent = f", silent for {duration(each.lease.age_s)}, to be taken over" if each.lease.expired else ""
    return f"{each.task.name} {each.share:.0%} by {each.lease.worker} since {since}{silent}"


def duration(seconds: float) -> str:
    """3 h 12 min, 4 min 5 s, 12 s."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def verify(ledger: Ledger) -> int:
    wrong = [(name, file) for name, files in ledger.lost(read=True) for file in files]
    for name, file in wrong[:20]:
        print(f"{file} is not as {name} wrote it")
    if wrong:
        print(f"{len(wrong)} shards are lost or changed: give the `tera-mind generate` command with --overwrite")
    else:
        print(f"all {sum(len(row.files) for row in ledger.rows().values())} shards are as they were written")
    return 1 if wrong else 0
