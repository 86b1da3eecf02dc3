"""`tera-mind`: finds the subcommand's module, runs it, and turns user errors into one line and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Protocol

from tera_mind import __version__
from tera_mind.errors import TeraMindError

#: subcommand -> (module in `tera_mind.cli`, one line of help), in the order of the data's way
COMMANDS = {
    "simulate": ("simulate", "make a virtual mouse brain, or a piece of one, with its truth"),
    "ingest": ("ingest", "read what instruments write, or your own tables and images, into a brain store"),
    "sections": ("sections", "turn ABBA's registration into the sections.csv that ingest takes"),
    "inspect": ("inspect", "say what a brain store, shard folder, volume or checkpoint holds"),
    "shards": ("shards", "cut a brain store into WebDataset training shards"),
    "fit": ("fit", "train a model from a YAML file"),
    "sweep": ("sweep", "many runs from one file, into one table and figure"),
    "generate": ("generate", "paint a volume from genes with a trained checkpoint"),
    "status": ("status", "say how far a volume is, and who is at it"),
    "evaluate": ("evaluate", "compare generated volumes with the real brain, with controls"),
    "compare": ("compare", "put evaluations side by side: tables, paired tests, the paper's figures"),
    "attention": ("attention", "read gene-gene attention over a brain: maps, figures, partners"),
    "intervene": ("intervene", "change genes: factual and counterfactual tissue, and what the change did"),
    "report": ("report", "write report.html from an evaluation"),
    "export": ("export", "write a brain store or volume as SpatialData, OME-TIFF or OME-Zarr"),
    "view": ("view", "look at real and generated tissue at any zoom, in a browser"),
    "demo": ("demo", "tissue in, report out: the whole way of the data in one command"),
    "benchmark": ("benchmark", "measure how fast this machine generates and trains, and the hours for your brain"),
    "verify": ("verify", "check this model against golden files of the published one"),
    "import-checkpoint": ("import_checkpoint", "turn a published checkpoint into one of ours"),
}


class Command(Protocol):
    """What a module of `tera_mind.cli` offers: `run(arguments) -> exit code` and parses its own arguments."""

    def run(self, arguments: Sequence[str]) -> int: ...


def build_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {words}" for name, (_, words) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="tera-mind",
        description="The genes of a tissue paint its morphology.",
        epilog=f"commands:\n{lines}\n\n`tera-mind COMMAND --help` explains one. Start with: tera-mind demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"tera-mind {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; exit code 0, 1 (a check failed), 2 (bad input), 130 (interrupted) or 141 (no one reads)."""
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:  # here, not when Python ends, where an error could no longer be caught
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError as error:
        if _unread():
            return 128 + signal.SIGPIPE
        print(f"tera-mind: error: {error}", file=sys.stderr)  # of another pipe
        return 2


def _unread() -> bool:
    """Whether no one reads what is printed any more, as after `| head`; then nothing more is, nor at Python's end."""
    broken = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is None:
                continue
            stream.flush()
            waiting = select.poll()  # unbuffered streams (PYTHONUNBUFFERED) have nothing left to flush
            waiting.register(stream.fileno(), 0)
            gone = any(event & select.POLLERR for _, event in waiting.poll(0))
        except BrokenPipeError:
            gone = True
        except (OSError, ValueError):  # no file at all
            continue
        if gone:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            broken = True
    return broken


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    if not arguments or arguments[0] in {"-h", "--help"}:
        parser.print_help()
        return 0
    if arguments[0].startswith("-"):
        parser.parse_args(arguments)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"tera-mind: error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command: Command = importlib.import_module(f"tera_mind.cli.{COMMANDS[name][0]}")
        return command.run(arguments[1:])
    except BrokenPipeError:
        raise
    except (TeraMindError, OSError) as error:  # bad input; a full disk, a folder that may not be written
        for line in error.lines if isinstance(error, TeraMindError) else (" ".join(str(error).split()),):
            print(f"tera-mind {name}: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ntera-mind {name}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
