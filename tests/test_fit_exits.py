"""How `tera-mind fit` ends when something ends it: one line, and an exit code that a batch file can act on."""

from __future__ import annotations

import signal
import sys

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from tiny_training import exit_code

from callbacks.signals import StoppedBySignal
from tera_mind.cli import fit


def no_compiler():
    raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nwas found")


def interrupted_as_lightning_does():
    try:
        raise KeyboardInterrupt  # noqa: TRY301
    except KeyboardInterrupt:
        sys.exit(1)


def stopped(number):
    def stop():
        raise StoppedBySignal(number, 12)

    return stop


@pytest.mark.parametrize(
    ("end", "rank", "code", "words"),
    [
        (no_compiler, 0, 2, "model.compile: the network could not be compiled here (no C++ compiler was found)"),
        (interrupted_as_lightning_does, 0, 130, "run the same command again to go on"),
        (stopped(signal.SIGINT), 0, 130, "run the same command again to go on"),
        (stopped(signal.SIGTERM), 0, 75, "stopped by SIGTERM after step 12; run the same command again to go on"),
        (stopped(signal.SIGUSR1), 0, 75, "SIGUSR1"),
        (stopped(signal.SIGTERM), 1, 0, ""),
    ],
)
def test_exit_codes(end, rank, code, words, monkeypatch, capsys):
    monkeypatch.setattr(fit, "_fit", lambda arguments: end())
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    assert exit_code(["fit"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
