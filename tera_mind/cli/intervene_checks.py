"""What `tera-mind intervene` refuses, all of it before anything is painted, measured for long, or replaced."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tera_mind.analysis.interventions.edits import Scale
from tera_mind.cli.intervene_run import (
    FILM,
    FILMSTRIP,
    MAP,
    POPULATIONS,
    SUMMARY,
    Run,
    nuclear_stain,
    stain_place,
    volume_path,
)
from tera_mind.effects.nulls import null_intervention
from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.formats.brain import Brain
from tera_mind.formats.replaceable import check_apart, check_folder, check_replaceable, check_summary
from tera_mind.sampling.counts import panel_index
from tera_mind.sampling.launch import check_space, found, plan_of

if TYPE_CHECKING:
    from tera_mind.analysis.interventions.intervention import Intervention
    from tera_mind.model.checkpoint import Checkpoint
    from tera_mind.sampling.job import Generation
    from tera_mind.sampling.launch import Launch

#: what a summary of this command says that it is
FORMAT = "intervention"


def read_strengths(text: str) -> tuple[float, ...]:
    """Strengths from 0 to 1, rising, each once, each with a volume of its own name."""
    try:
        given = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--strengths is numbers from 0 to 1 such as 0,0.5,1, got {text!r}") from None
    # not a number is neither below nor above anything
    if given[0] != 0 or given[-1] != 1 or not all(0 <= strength <= 1 for strength in given):
        raise InputError(f"--strengths goes from 0 (as measured) to 1 (edited), both given, got {text!r}")
    if len({volume_path(Path(), strength) for strength in given}) != len(given):
        raise InputError(f"--strengths are told apart by six digits, two of {text!r} are not: give others")
    return tuple(given)


def check_out(options: argparse.Namespace, strengths: tuple[float, ...]) -> None:
    """The folder is none of the inputs, and holds nothing of another kind under the names that are written."""
    if options.null < 0 or options.resamples < 0:
        raise InputError(f"--null and --resamples are 0 or more, got {options.null} and {options.resamples}")
    out: Path = options.out
    given = [options.brain, options.checkpoint, options.experiment, *([options.target] if options.target else [])]
    check_apart(out, given)
    if not out.exists():
        return
    check_folder(out, (FILM, FILMSTRIP))
    check_summary(out / SUMMARY, FORMAT)
    check_replaceable(out / MAP, ("map",), [])
    for strength in strengths:
        check_replaceable(volume_path(out, strength), ("volume",), [])
    for folder in (POPULATIONS, volume_path(Path(), 0.0).parent):
        if (out / folder).exists() and not (out / folder).is_dir():
            raise InputError(f"{out / folder} is a file where a folder is needed; choose another --out")


def open_target(path: Path, brain: Brain, checkpoint: Checkpoint, *, allow_missing: bool) -> Brain:
    """The brain of `--target`; it must lie where the brain lies, and have the genes and the stain that are compared."""
    target = Brain.open(path)
    if target.shape[1:] != brain.shape[1:] or abs(target.pixel_um / brain.pixel_um - 1) > 0.01:
        raise InputError(
            f"--target should lie on the brain's canvas, sections and pixels {brain.shape[1:]} at {brain.pixel_um:g} "
            f"um; it has {target.shape[1:]} at {target.pixel_um:g} um"
        )
    stain_place(target.stains, nuclear_stain(brain.stains), "--target")
    try:
        panel_index(target.genes, checkpoint.info.genes, allow_missing=allow_missing)
    except PanelMismatchError as error:
        raise PanelMismatchError(f"--target: {error}") from error
    return target


def check_edits(intervention: Intervention, job: Generation, null: int) -> None:
    """Every gene that is scaled is there to be scaled, and the null can be drawn."""
    for number, part in enumerate(intervention.parts, start=1):
        absent = set(part.edit.targets) & set(job.missing_genes) if isinstance(part.edit, Scale) else ()
        if absent:
            raise InputError(
                f"edit {number} (scale): the brain lacks {', '.join(sorted(absent))}, so there is nothing to scale"
            )
    if null:
        try:
            null_intervention(intervention, np.zeros(len(intervention.genes)), 0, job.seed)
        except InputError as error:
            raise InputError(f"--null: {error}; leave it out") from error


def check_volumes(made: Run, launch: Launch) -> bool:
    """Whether any volume is to be made; none is refused after others were painted, and the disk can hold them all."""
    missing = [s for s in made.strengths if found(made.at(s), made.path(s), launch) is None]
    if missing:
        check_space(made.job, plan_of(made.job, launch), made.out, len(missing))
    return bool(missing)
