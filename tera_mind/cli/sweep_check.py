"""Everything about a sweep that can be wrong is found before the first run starts: options, recipe keys, shapes."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import yaml

from tera_mind.errors import InputError, TeraMindError
from tera_mind.sweep.definition import Sweep
from tera_mind.sweep.plan import Task

#: a command's name is a module of `tera_mind.cli` and one of its two words for its parser
_PARSERS = ("build_parser", "parser")


def check_metrics(sweep: Sweep) -> None:
    """Refuse a metric that no evaluation writes."""
    from tera_mind.metrics.table import METRICS

    for metric, _ in sweep.table.metrics:
        if metric not in METRICS:
            raise InputError(f"sweep {sweep.path}: no metric {metric!r}; there are {', '.join(METRICS)}")


def check_commands(tasks: Sequence[Task]) -> None:
    """Parse every command as it will be parsed; the first that would be refused is refused here, by name."""
    from tera_mind.cli.main import COMMANDS

    for task in tasks:
        name = task.words[0]
        if name not in COMMANDS or name == "sweep":
            raise InputError(f"{task.name}: no command {name!r} for a stage; there are {', '.join(COMMANDS)}")
        given = list(task.words[1:])
        module = importlib.import_module(f"tera_mind.cli.{COMMANDS[name][0]}")
        if name == "fit":
            said = _parsed(task, partial(module.run, [*given, "--print_config"]))
            _check_shape(task, yaml.safe_load(said))
            continue
        parser = next((getattr(module, word) for word in _PARSERS if hasattr(module, word)), None)
        if parser is not None:
            _parsed(task, partial(parser().parse_args, given))


def _parsed(task: Task, parse: Callable[[], Any]) -> str:
    """What parsing prints; `InputError` with the parser's last line where it refuses."""
    out, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            parse()
    except SystemExit as error:
        if error.code not in {0, None}:
            lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
            words = " ".join(lines[-2:]) if task.words[0] == "fit" else lines[-1] if lines else ""
            raise InputError(f"{task.name}: {words or 'its command cannot be read'}") from None
    except TeraMindError as error:
        raise InputError(f"{task.name}: {error}") from None
    return out.getvalue()


def _check_shape(task: Task, settings: dict[str, Any]) -> None:
    """Refuse a network whose sizes do not fit; panel and sections, which only the shards tell, stand at small ones."""
    import torch

    from tera_mind.model.inputs import Inputs
    from tera_mind.module import MODULES

    grid = {key: settings["data"][key] for key in ("patch_px", "bin_px")}
    inputs = Inputs(("a", "b"), ("c", "d"), pixel_um=1.0, intensity_range={}, gene_sections=1, **grid)
    try:
        with torch.device("meta"):  # shapes alone, no memory
            MODULES[settings["method"]](inputs, **settings["model"] | {"init_from": None})
    except TeraMindError as error:
        raise InputError(f"{task.name}: {error}") from None
