"""Files and folders appear whole or not at all: on success, on failure, and when the process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tera_mind.formats import atomic
from tera_mind.formats.atomic import OLD_S, atomic_directory, atomic_file, sweep
from tera_mind.processes import Process


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_in_file(path: Path, error: BaseException) -> None:
    with atomic_file(path) as partial:
        partial.write_text("half")
        raise error


def fail_in_folder(path: Path, error: BaseException) -> None:
    with atomic_directory(path) as partial:
        (partial / "half").write_text("half")
        raise error


def test_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    for text in ("old", "new"):
        with atomic_file(path) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent, "a rename is atomic only inside one file system"
    assert path.read_text() == "new"
    assert names_in(path.parent) == ["metrics.json"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_file_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_in_file(tmp_path / "metrics.json", error())
    assert names_in(tmp_path) == []


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="stop"):
        fail_in_file(path, ValueError("stop"))
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["metrics.json"]


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "brain.zarr"
    for name in ("old", "new"):
        with atomic_directory(path) as partial:
            (partial / "images").mkdir()
            (partial / "images" / name).write_text(name)
    assert names_in(path.parent) == ["brain.zarr"]
    assert names_in(path / "images") == ["new"], "nothing of the old folder may show through"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_in_folder(tmp_path / "brain.zarr", error())
    assert names_in(tmp_path) == []


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "brain.zarr"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(ValueError, match="stop"):
        fail_in_folder(path, ValueError("stop"))
    assert names_in(tmp_path) == ["brain.zarr"]
    assert (path / "old").read_text() == "old"


def test_a_folder_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "brain.zarr"
    leftover = tmp_path / f".{path.name}.partial-{Process.own().word}"
    leftover.mkdir()
    (leftover / "stale").write_text("stale")
    with atomic_directory(path) as partial:
        (partial / "new").write_text("new")
    assert names_in(path) == ["new"]


KILLED = """
import sys, time
from pathlib import Path
from tera_mind.formats.atomic import atomic_directory, atomic_file
kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "file":
    with atomic_file(path) as partial:
        with partial.open("w") as stream:
            stream.write("half")
            stream.flush()
            print("writing", flush=True)
            time.sleep(60)
else:
    with atomic_directory(path) as partial:
        (partial / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""


def kill_while_writing(kind: str, path: Path) -> None:
    """Start a process that writes `path`, and kill it in the middle, so that no clean-up code runs."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, kind, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    process.stdout.close()


def test_a_killed_process_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    kill_while_writing("file", path)
    assert path.read_text() == "old"


def test_a_killed_process_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    kill_while_writing("file", path)
    assert not path.exists()
    with atomic_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


SAY = "from tera_mind.processes import Process; print(Process.own().word)"


@pytest.fixture(scope="module")
def dead() -> str:
    """The word of a process that has ended."""
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True, timeout=60)
    return said.stdout.strip()


def make_old(path: Path) -> None:
    long_ago = time.time() - OLD_S - 60
    os.utime(path, (long_ago, long_ago))


@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
def test_leftovers_of_dead_processes_are_swept(tmp_path: Path, write: Callable[[Path], Any], dead: str) -> None:
    machine, pid, began = dead.split("-")
    living = Process(machine, os.getpid(), began)  # the number is in use again, by this process
    (tmp_path / f".out.scratch-{living.word}").mkdir()
    (tmp_path / f".out.partial-{dead}").mkdir()
    (tmp_path / f".out.partial-{dead}" / "half").write_text("half")
    (tmp_path / f".out.scratch-{dead}").mkdir()
    kept = [
        f".out.partial-{parent()}",
        f".out.partial-elsewhere-{pid}-{began}",  # of another machine: nothing is known of it
        f".out.partial-{machine}-{pid}-abcdef_5",  # of another container of this machine, or before it began anew
        f".out.partial-{pid}",  # does not say of which machine
        *(f".out.partial-{dead}.txt", f".other.partial-{dead}"),
    ]
    for name in kept:
        (tmp_path / name).write_text("of another process or another output")
    with write(tmp_path / "out") as partial:
        if write is atomic_file:
            partial.write_text("new")
    assert names_in(tmp_path) == sorted([*kept, "out"])
    for name in kept:
        make_old(tmp_path / name)
    sweep(tmp_path / "out")
    assert names_in(tmp_path) == sorted([*kept[4:], "out"])


def parent() -> str:
    """The word of the process that started this one, read from /proc independently."""
    ticks = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    own = Process.own()
    return Process(own.machine, os.getppid(), f"{own.began.partition('_')[0]}_{ticks}").word


def test_a_process_that_was_killed_and_not_waited_for_has_ended() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SAY + "; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    process = Process.of(child.stdout.readline().strip())
    assert process is not None
    assert not process.ended
    os.kill(child.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while not process.ended:  # a zombie, until it is waited for
        assert time.monotonic() < until
        time.sleep(0.01)
    child.communicate()
    assert process.ended


def test_a_folder_that_another_machine_put_aside_comes_back_when_it_surely_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path / ".brain.zarr.old-elsewhere-5-abcdef_7"
    aside.mkdir()
    make_old(aside)  # a folder is as old as its content; it was put aside just now
    sweep(tmp_path / "brain.zarr")
    assert names_in(tmp_path) == [aside.name]
    monkeypatch.setattr(atomic, "ASIDE_S", 0.0)
    sweep(tmp_path / "brain.zarr")
    assert names_in(tmp_path) == ["brain.zarr"]


def test_a_folder_put_aside_by_a_process_that_died_comes_back(tmp_path: Path, dead: str) -> None:
    aside = tmp_path / f".brain.zarr.old-{dead}"
    aside.mkdir()
    (aside / "old").write_text("old")
    with pytest.raises(ValueError, match="stop"):
        fail_in_folder(tmp_path / "brain.zarr", ValueError("stop"))
    assert names_in(tmp_path) == ["brain.zarr"]
    assert (tmp_path / "brain.zarr" / "old").read_text() == "old"


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "brain.zarr"
    path.mkdir()
    (path / "old").write_text("old")
    replace = Path.replace

    def failing(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("no space left on device")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no space"), atomic_directory(path) as partial:
        (partial / "new").write_text("new")
    assert names_in(tmp_path) == ["brain.zarr"]
    assert names_in(path) == ["old"]


def test_a_killed_process_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    path = tmp_path / "brain.zarr"
    path.mkdir()
    (path / "old").write_text("old")
    kill_while_writing("folder", path)
    assert names_in(path) == ["old"]
    assert (path / "old").read_text() == "old"
