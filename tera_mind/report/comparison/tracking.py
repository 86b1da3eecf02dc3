"""A comparison in Weights & Biases: its table and figures as one run, and a run an entry with its scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from tera_mind.errors import InputError
from tera_mind.report.comparison.scores import Comparison
from tera_mind.report.comparison.style import Drawing
from tera_mind.report.comparison.text import how_tested

HEAD = ("entry", "metric", "stain", "value", "low", "high", "spread", "seeds", "n", "unit", "better", "rank")


def check_wandb() -> ModuleType:
    """The wandb package. Raises `InputError` where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise InputError("--wandb needs the package wandb, which is not installed: pip install wandb") from None
    return wandb


def log_comparison(comparison: Comparison, drawings: Sequence[Drawing], project: str, out: Path) -> None:
    """Log to a project, into `out`/wandb; WANDB_MODE=offline needs neither network nor key.

    The run "comparison" holds the tables `compare/scores` and `compare/tests` and every figure as `compare/<figure>`;
    a run for each entry holds `compare/<metric>/<stain>` (without stain where there is none). Raises `InputError` when
    W&B refuses.
    """
    wandb = check_wandb()
    shared = {"project": project, "group": out.resolve().name, "job_type": "compare", "dir": out}
    # what is logged was measured elsewhere: this machine's console, load and checkout say nothing about it
    shared["settings"] = wandb.Settings(quiet=True, console="off", x_disable_stats=True, disable_git=True)
    try:
        with wandb.init(name="comparison", **shared) as run:
            run.config.update({"reference": comparison.reference, "tested": how_tested(comparison)})
            run.log(_summary(wandb, comparison) | _pictures(wandb, drawings))
        for entry in comparison.entries:
            own = [score for score in comparison.scores if score.entry == entry.name and score.value is not None]
            with wandb.init(name=entry.name, **shared) as run:
                run.config.update({"method": entry.method, "runs": [str(found.path) for found in entry.runs]})
                run.log({"/".join(filter(None, ("compare", s.metric, s.stain))): s.value for s in own})
    except wandb.errors.Error as error:
        raise InputError(
            f"W&B did not take the comparison ({error}): log in with `wandb login`, or set WANDB_MODE=offline"
        ) from None


def _summary(wandb: Any, comparison: Comparison) -> dict[str, Any]:
    scores = wandb.Table(columns=list(HEAD), data=[[asdict(score)[key] for key in HEAD] for score in comparison.scores])
    found = {"compare/scores": scores}
    if comparison.tests:
        tests = [asdict(test) | {"verdict": test.verdict} for test in comparison.tests]
        found["compare/tests"] = wandb.Table(columns=list(tests[0]), data=[list(test.values()) for test in tests])
    return found


def _pictures(wandb: Any, drawings: Sequence[Drawing]) -> dict[str, Any]:
    from PIL import Image

    return {
        f"compare/{drawing.name}": wandb.Image(Image.open(io.BytesIO(drawing.png)), caption=drawing.caption)
        for drawing in drawings
    }
