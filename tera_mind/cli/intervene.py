"""`tera-mind intervene`: the same tissue with its genes as measured and as edited, and what the edit did."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tera_mind.cli.intervene_run import FEATURES, POPULATIONS, SUMMARY, Run
from tera_mind.errors import FormatError, InputError, MissingFileError

if TYPE_CHECKING:
    from tera_mind.analysis.interventions.declaration import Experiment
    from tera_mind.analysis.interventions.population import Basis
    from tera_mind.formats.brain import Brain
    from tera_mind.formats.volume import Volume
    from tera_mind.model.checkpoint import Checkpoint

_DESCRIPTION = """\
Edit the genes of a brain, or of a region of it, and generate what its tissue would look like: the factual volume and
the edited ones with the same noise, so that their difference is the edit. What changed, where, and how nuclei moved is
written beside them."""

_EPILOG = """\
an experiment, all paths relative to its file:
  name: lower myelin
  regions:
    tract: {labels: brain.truth, names: [fibre tract]}    # a label map, or box: '0um:500um,:', or sections: [2, 3]
  populations:                                            # only for kinds match and self_scale
    here: {region: tract}
    there: {brain: other.zarr}                            # or file: stored.npz
  edits:                                                  # applied in order, each with region and strength if asked
    - {kind: scale, genes: [Mog, Sox10], factor: 0.2, region: tract}
    - {kind: match, population: here, target: there, components: 1, region: tract}
    - {kind: self_scale, population: here, components: 100, factor: 0.5}
    - {kind: replace, pattern: noise, keep: 0.5, high: 2, genes: [Mog]}
    - {kind: function, function: 'my_edits:double', arguments: {by: 2}}

examples:
  tera-mind intervene myelin.yaml --checkpoint main.ckpt --brain brain.zarr --out myelin --dry-run
  tera-mind intervene myelin.yaml --checkpoint main.ckpt --brain brain.zarr --out myelin --strengths 0,0.25,0.5,1
  tera-mind intervene myelin.yaml --checkpoint main.ckpt --brain brain.zarr --out myelin --target lesion.zarr --null 20
  tera-mind view brain.zarr myelin/volumes/strength_0.zarr myelin/change.zarr

Give the same command again to go on after an interruption: finished volumes and units are kept."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind intervene",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("experiment", type=Path, metavar="EXPERIMENT.yaml", help="what is edited where, see below")
    add("--checkpoint", type=Path, required=True, help="checkpoint written by `tera-mind fit`")
    add("--brain", type=Path, required=True, help="brain store whose genes are edited")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for volumes, map, pictures and summary")
    add("--strengths", default="0,1", help="s of (1 - s) x measured + s x edited, 0 and 1 too (default: %(default)s)")
    add("--region", default=None, help="y0:y1,x0:x1 in pixels, percent, um or mm (default: the canvas)")
    add("--sections", default=None, help="sections to generate, for example 0:4 or 3 (default: all)")
    add("--target", type=Path, default=None, metavar="BRAIN", help="the same tissue as it should become, to compare")
    add("--null", type=int, default=0, metavar="N", help="random gene sets of equal expression (default: %(default)s)")
    add(
        "--features", default="pyramid", choices=FEATURES,
        help="what latent scores compare: pyramid, features of the genes; bottleneck, what the encoder makes of genes "
        "and noise-free image together (default: %(default)s)",
    )  # fmt: skip
    add("--steps", type=int, default=15, help="sampling steps (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of noise, null and resampling (default: %(default)s)")
    add("--mask", default="tissue", choices=("tissue", "none"), help="what is painted, see generate (default: tissue)")
    add("--allow-missing-genes", action="store_true", help="take genes that the brain lacks as zero")
    add("--precision", default="auto", choices=("auto", "32", "bf16"), help="auto: bf16 where the hardware has it")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--workers", type=int, default=1, help="processes that generate (default: %(default)s)")
    add("--resamples", type=int, default=1000, help="resamples of the intervals (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace volumes of other settings in the folder")
    add("--dry-run", action="store_true", help="check everything, say how far the edit reaches and what it costs")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)

    from tera_mind.analysis.interventions.declaration import read_experiment
    from tera_mind.cli import intervene_checks as checks
    from tera_mind.cli.intervene_effects import conclude
    from tera_mind.cli.intervene_run import nuclear_stain, stain_place
    from tera_mind.formats.brain import Brain
    from tera_mind.model.checkpoint import load_checkpoint
    from tera_mind.model.devices import choose_device
    from tera_mind.sampling.launch import Launch

    strengths = checks.read_strengths(options.strengths)
    experiment = read_experiment(options.experiment)
    checks.check_out(options, strengths)
    brain, checkpoint = Brain.open(options.brain), load_checkpoint(options.checkpoint)
    stain_place(checkpoint.info.stains, nuclear_stain(brain.stains), "the checkpoint")
    if options.features == "bottleneck":
        _ = checkpoint.gene_morph
    target = None
    if options.target is not None:
        target = checks.open_target(options.target, brain, checkpoint, allow_missing=options.allow_missing_genes)
    launch = Launch((choose_device(options.device),), options.workers, overwrite=options.overwrite)
    made = prepare(options, experiment, brain, checkpoint, strengths, launch)
    checks.check_edits(made.intervention, made.job, options.null)
    to_be_made = checks.check_volumes(made, launch)
    print(describe(made), flush=True)
    if options.dry_run:
        from tera_mind.cli.generate import dry_run

        print(f"each of {len(strengths)} volumes:")
        return dry_run(made.job, launch)
    for name, basis in made.measured.items():
        basis.write(options.out / POPULATIONS / f"{name}.npz")
    if to_be_made:  # a summary of volumes that are gone must not outlive them
        (options.out / SUMMARY).unlink(missing_ok=True)
    volumes = paint(made, launch)
    for line in conclude(made, volumes, target, options):
        print(line)
    return 0


def prepare(
    options: argparse.Namespace,
    experiment: Experiment,
    brain: Brain,
    checkpoint: Checkpoint,
    strengths: tuple[float, ...],
    launch: Any,
) -> Run:
    """Measure the populations that are used, make the intervention and the job, and find what it reaches."""
    from tera_mind.analysis.interventions.locality import margin_px, reach_px
    from tera_mind.effects.zones import INSIDE, Zones
    from tera_mind.geometry import Box
    from tera_mind.metrics.regions import RegionMap
    from tera_mind.model.devices import choose_precision
    from tera_mind.sampling.job import Generation, block_of, default_region

    model = checkpoint.info.model
    wanted = None if options.region is None else Box.parse(options.region, brain.canvas, brain.pixel_um)
    region = default_region(brain, model.patch_px, wanted)
    sections = _sections(options.sections, len(brain.sections))
    rows, columns = block_of(region, model.patch_px)
    job = Generation(
        checkpoint, brain, region, sections, "as measured", options.seed, options.steps, "ddim", 0.0, rows, columns, 1,
        options.mask == "tissue", choose_precision(options.precision, launch.devices[0]), "uint8",
        options.allow_missing_genes,
    )  # fmt: skip
    populations: dict[str, Basis] = {}
    measured: dict[str, Basis] = {}
    for name in experiment.used_populations():
        populations[name], kept = _population(name, experiment, brain, model.patch_px, options)
        if not kept:
            measured[name] = populations[name]
    if options.allow_missing_genes:
        populations = {name: basis.filled(checkpoint.info.genes) for name, basis in populations.items()}
    _find_functions(options.experiment.parent)
    intervention = experiment.intervention(
        brain, checkpoint.info.genes, patch_px=model.patch_px, bin_px=model.bin_px, populations=populations,
        open_labels=RegionMap.open,
    )  # fmt: skip
    steps, halo_px = job.settings.steps, reach_px(
        model.halo_px, model.patch_px, (rows, columns), tile_exact=model.tile_exact
    )  # fmt: skip
    zones = Zones.of(
        intervention, job.groups, sections, region, steps=steps, halo_px=halo_px,
        margin_px=margin_px(steps, model.patch_px, halo_px),
    )  # fmt: skip
    if not (zones.bins == INSIDE).any():
        raise InputError("the edits touch nothing of the region and sections to generate: give others, or other masks")
    return Run(job, intervention, strengths, zones, options.out, measured)


def _find_functions(folder: Path) -> None:
    """Functions of a user are looked for beside the experiment too, after all that is installed."""
    here = str(folder.resolve())
    if here not in sys.path:
        sys.path.append(here)  # worker processes are handed it


def _sections(text: str | None, count: int) -> tuple[int, ...]:
    if text is None:
        return tuple(range(count))
    first, colon, last = text.partition(":")
    try:
        return tuple(range(int(first or 0), int(last or count))) if colon else (int(first),)
    except ValueError:
        raise InputError(f"--sections is a number or first:last, got {text!r}") from None


def _population(
    name: str, experiment: Experiment, own: Brain, row_px: int, options: argparse.Namespace
) -> tuple[Basis, bool]:
    """A population, and whether it lies on the disk already; else it was measured in one pass, to be kept in the output
    folder for the next run once nothing is refused any more.
    """
    from tera_mind.analysis.interventions.population import Basis, measure, population_facts
    from tera_mind.cli.progress import track
    from tera_mind.formats.brain import Brain
    from tera_mind.metrics.regions import RegionMap

    spec = experiment.populations[name]
    if spec.file is not None:
        return Basis.read(spec.file), True
    brain = own if spec.brain is None else Brain.open(spec.brain)
    # a patch of the network in this brain's pixels, should they differ
    row_px = round(row_px * own.pixel_um / brain.pixel_um)
    mask = experiment.mask(spec.region, brain, RegionMap.open)
    stored = options.out / POPULATIONS / f"{name}.npz"
    facts = population_facts(name, brain, brain.canvas, range(len(brain.sections)), row_px, mask)
    if stored.exists():
        try:
            kept = Basis.read(stored)
            if kept.facts == facts:
                return kept, True
            if not options.overwrite:
                raise InputError(f"{stored} is of another place or brain: give --overwrite, or another --out")
        except (FormatError, MissingFileError):
            if not options.overwrite:
                raise
    return measure(name, brain, row_px, mask=mask, progress=lambda tiles: track(tiles, f"population {name}")), False


def describe(made: Run) -> str:
    """The edit and its reach in words."""
    from tera_mind.analysis.interventions.locality import edited_bins
    from tera_mind.effects.zones import INSIDE, MARGIN

    zones, job = made.zones, made.job
    patches = zones.patches(INSIDE) | zones.patches(MARGIN)
    share = float((zones.bins == INSIDE).mean())
    targets = made.intervention.targets
    shown = ", ".join(targets[:6]) + (f" and {len(targets) - 6} more" if len(targets) > 6 else "")
    um = zones.margin_px * job.brain.pixel_um
    idle = [
        f"edit {number} touches nothing of the region and sections\n"
        for number, part in enumerate(made.intervention.parts, start=1)
        if not any(edited_bins([part.mask], [z], job.region, zones.bin_px).any() for z in job.sections)
    ]
    passes = f"{job.settings.steps} steps" if job.has_steps else "one pass"
    return "".join(idle) + (
        f"{made.intervention.name}: {len(made.intervention.parts)} edit(s) of {shown}, in {share:.1%} of "
        f"{job.region}, sections {', '.join(map(str, job.sections))}; digest {made.intervention.digest}\n"
        f"margin: {zones.margin_px} px ({um:.0f} um) around patches, for {passes}; {patches.mean():.1%} of "
        "all patches can change, the others hold what they held"
    )


def paint(made: Run, launch: Any) -> dict[float, Volume]:
    """A volume a strength, through the same units, ledger and noise; what is finished is kept."""
    from tera_mind.cli.generate import progress_bar
    from tera_mind.sampling.launch import generate

    volumes: dict[float, Volume] = {}
    for strength in made.strengths:
        path = made.path(strength)
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"strength {strength:g}: {path}", flush=True)
        with progress_bar() as watch:
            volume = generate(made.at(strength), path, launch, watch)
        assert volume is not None  # one command does all of it
        volumes[strength] = volume
    return volumes
