"""The command line: every command is listed, teaches, and ends a user's mistake with one line and exit code 2."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tera_mind import __version__
from tera_mind.cli.main import COMMANDS, main
from tera_mind.cli.names import OWN_PACKAGES, check_own_packages
from tera_mind.errors import FormatError, InputError


def exit_code(arguments: Sequence[str]) -> int:
    """What the shell would see."""
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, words) in COMMANDS.items():
        assert re.search(rf"^\s+{name}\s+{re.escape(words)}$", text, re.MULTILINE), f"{name} is not listed"


def test_no_argument_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"tera-mind {__version__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_module(name: str) -> None:
    module = importlib.import_module(f"tera_mind.cli.{COMMANDS[name][0]}")
    assert callable(module.run)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage:" in text.lower()
    examples = re.search(r"example", text, re.IGNORECASE)
    assert examples, f"`tera-mind {name} --help` shows no example"
    assert f"tera-mind {name} " in text[examples.start() :], "the example is no line that one could type"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([name, "--no-such-option"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["paint"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "'paint'" in captured.err
    assert "generate" in captured.err


def install_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """A command `break` that raises."""

    def run(_arguments: Sequence[str]) -> int:
        raise error

    module = ModuleType("tera_mind.cli.break_")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tera_mind.cli.break_", module)
    monkeypatch.setitem(COMMANDS, "break", ("break_", "raises"))


def test_a_user_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install_command(monkeypatch, FormatError("expected version 1,\n   got version 7;\ningest again"))
    assert exit_code(["break"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "tera-mind break: error: expected version 1, got version 7; ingest again\n"
    assert captured.out == ""


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["break"])


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install_command(monkeypatch, KeyboardInterrupt())
    assert exit_code(["break"]) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_the_console_command_exits_with_the_code() -> None:
    """Through a real process: nothing else lies between the shell and `main`."""
    result = subprocess.run(
        [sys.executable, "-m", "tera_mind.cli.main", "paint"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("tera-mind: error: no command 'paint'")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["sections", "--help"], ["paint"]])
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    """As after `| head`: no one reads what is printed, nor (`paint`) what went wrong."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "tera_mind.cli.main", *words]
    error = write if words == ["paint"] else subprocess.PIPE
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run(command, stdout=write, stderr=error, text=True, check=False, env=buffered)
    os.close(write)
    assert result.returncode == 128 + signal.SIGPIPE
    assert not result.stderr


def test_another_pipe_that_breaks_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_command(monkeypatch, BrokenPipeError("a worker's"))
    assert exit_code(["break"]) == 2
    assert capsys.readouterr().err == "tera-mind: error: a worker's\n"


def test_own_packages_are_ours() -> None:
    check_own_packages()


CHECK = """
from tera_mind.cli.names import check_own_packages
from tera_mind.errors import InputError
try:
    check_own_packages()
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", OWN_PACKAGES)
@pytest.mark.parametrize("form", ["{}/__init__.py", "{}.py"])
def test_a_package_that_hides_ours_is_named(tmp_path: Path, name: str, form: str) -> None:
    foreign = tmp_path / form.format(name)
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise RuntimeError('a foreign package must not run')")
    result = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=tmp_path.parent,  # the folder of `python -c` goes before PYTHONPATH, so it must not be the repository
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(foreign) in result.stdout
    assert f"take {tmp_path} off the Python path" in result.stdout
    assert result.stdout.count("\n") == 1


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tera_mind.cli.names.OWN_PACKAGES", ("datamodules_not_there",))
    with pytest.raises(InputError, match=r"datamodules_not_there.*reinstall"):
        check_own_packages()
