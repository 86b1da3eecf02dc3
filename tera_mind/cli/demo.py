"""`tera-mind demo`: the whole way of the data on one machine, from tissue to report.

Every stage is one of the other subcommands, shown as it would be typed. A stage whose output is there is not done
again, so an interrupted demo goes on when the same command is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import tera_mind
from tera_mind.errors import InputError, MissingFileError, TeraMindError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.volume import is_unfinished

#: weights from other simulated tissue, with the shape of experiments/demo.yaml; how they were made:
#: docs/decisions/0004-demo-weights.md
WEIGHTS = Path(tera_mind.__file__).resolve().parent / "weights" / "simulated.ckpt"
#: pixels of simulated tissue are coarser, so that ten minutes see enough cells to learn nuclei
SIMULATED_PIXEL_UM, PIXEL_UM = 0.85, 0.425
TRAIN, TEST = ":,:60%", ":,60%:"
VOLUMES = {"generated": "as measured", "shuffled": "shuffled", "zeroed": "zeroed"}
#: seconds a megapixel and volume that evaluation and report take on one core, with a fixed part; measured, rounded up
EVALUATE_S, EVALUATE_S_PER_MEGAPIXEL = 30.0, 40.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tera-mind demo",
        description=(
            "Tissue in, report out: ingest, shards, training on the left 60 % of the tissue, generation of the unseen\n"
            "right 40 % from its genes, with controls, evaluation, and a report. Without --input it simulates tissue,\n"
            "and training starts from weights that were made on other simulated tissue."
        ),
        epilog=(
            "examples:\n"
            "  tera-mind demo\n"
            "  tera-mind demo --input xenium_output --minutes 90 --out xenium-demo\n\n"
            "Give the same command again to go on after an interruption."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--input", type=Path, default=None, help="Xenium or MERSCOPE folder (default: simulated tissue)")
    add("--out", type=Path, default=Path("demo-run"), help="folder for everything (default: demo-run)")
    add("--minutes", type=float, default=12.0, help="time for all stages together (default: 12)")
    add(
        "--recipe",
        type=Path,
        default=None,
        help="YAML for `tera-mind fit` (default: demo.yaml, for --input tissue.yaml)",
    )
    add("--pixel-um", type=float, default=None, help="pixel size to work at (default: 0.425; simulated 0.85)")
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--dry-run", action="store_true", help="say which stages would run")
    return made


@dataclass(frozen=True)
class Stage:
    """One step of the demo: a subcommand with its arguments, and the file that exists when it is done."""

    command: str
    arguments: Callable[[], list[str]]
    done: Path

    @property
    def is_done(self) -> bool:
        """Whether its output is there, whole: only a volume grows in its place."""
        return self.done.exists() and not is_unfinished(self.done)


def run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    start = time.monotonic()
    recipe = prepare(options)
    stages = plan(options, recipe, start)
    if options.dry_run:
        for number, stage in enumerate(stages, start=1):
            state = "done" if stage.is_done else "to do"
            print(f"{number}/{len(stages)} {stage.command:<9} {state:<6} -> {stage.done}")
        print("dry run: nothing was done")
        return 0
    claim(options.out, options, recipe)
    for number, stage in enumerate(stages, start=1):
        left = options.minutes - (time.monotonic() - start) / 60
        heading = f"[{number}/{len(stages)}] {stage.command}"
        if stage.is_done:
            print(f"{heading}: done before ({stage.done})", flush=True)
            continue
        given = stage.arguments()
        print(
            f"{heading}  ({max(0.0, left):.1f} min left)\n  tera-mind {stage.command} {shlex.join(given)}", flush=True
        )
        code: int = import_module(f"tera_mind.cli.{stage.command}").run(given)
        if code:
            return code
        if stage.command == "fit":
            stage.done.touch()
    print(f"\nthe demo took {(time.monotonic() - start) / 60:.1f} minutes")
    print(f"report: {(options.out / 'report.html').resolve()}")
    return 0


def prepare(options: argparse.Namespace) -> Path:
    """Fill in what depends on the input and refuse what cannot work, before anything is written; the recipe's path."""
    if options.minutes <= 0:
        raise InputError(f"--minutes must be above 0, got {options.minutes:g}")
    if options.pixel_um is None:
        options.pixel_um = SIMULATED_PIXEL_UM if options.input is None else PIXEL_UM
    recipe: Path = options.recipe or default_recipe(real=options.input is not None, device=options.device)
    if not recipe.is_file():
        raise MissingFileError(f"no recipe at {recipe}: give a YAML file for `tera-mind fit`")
    if options.input is not None:
        ingest_arguments(options.input, options.out / "brain.zarr", options.pixel_um)
    return recipe


def default_recipe(*, real: bool, device: str) -> Path:
    """The recipe of `experiments/` for simulated or real tissue on this device, in the tree this package runs from."""
    from tera_mind.model.devices import choose_device

    name = "demo.yaml" if not real else "tissue_gpu.yaml" if choose_device(device).type == "cuda" else "tissue.yaml"
    path = Path(tera_mind.__file__).resolve().parents[1] / "experiments" / name
    if not path.is_file():
        raise MissingFileError(f"no {path}: run the demo from a clone of the repository, or give --recipe FILE.yaml")
    return path


def claim(out: Path, options: argparse.Namespace, recipe: Path) -> None:
    """Remember what a demo folder was made with, and refuse to mix two demos in one."""
    settings = {
        "input": None if options.input is None else str(options.input.resolve()),
        "minutes": options.minutes,
        "recipe": hashlib.sha256(recipe.read_bytes()).hexdigest(),
        "pixel_um": options.pixel_um,
        "seed": options.seed,
    }
    record = out / "demo.json"
    if record.exists():
        before: dict[str, Any] = json.loads(record.read_text())
        changed = sorted(key for key in settings if before.get(key) != settings[key])
        if changed == ["minutes"] and not (out / "training" / "finished").exists():
            changed = []  # more time may be given until training is over
        if changed:
            raise InputError(
                f"{out} holds a demo with other settings ({', '.join(changed)}): give another --out, or remove it"
            )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no demo: give another --out")
    with atomic_file(record) as partial:
        partial.write_text(json.dumps(settings, indent=2))


def plan(options: argparse.Namespace, recipe: Path, start: float) -> list[Stage]:
    out: Path = options.out
    brain, shards, training = out / "brain.zarr", out / "shards", out / "training"
    stages: list[Stage] = []
    tissue = options.input
    if tissue is None:
        tissue = out / "simulated"
        seed, pixel = str(options.seed), str(options.pixel_um)
        stages.append(
            Stage(
                "simulate",
                lambda: ["--out", str(tissue), "--seed", seed, "--pixel-um", pixel],
                tissue / "simulation.json",
            )
        )
    stages.append(Stage("ingest", lambda: ingest_arguments(tissue, brain, options.pixel_um), brain))
    crop = str(2 * recipe_value(recipe, "data", "patch_px"))
    stages.append(
        Stage(
            "shards",
            lambda: [
                str(brain),
                "--train",
                TRAIN,
                "--val",
                TEST,
                "--crop-px",
                crop,
                "--core-px",
                "128",
                "--out",
                str(shards),
            ],
            shards / "manifest.json",
        )
    )
    stages.append(Stage("fit", lambda: fit_arguments(options, recipe, shards, training, start), training / "finished"))
    for name, genes in VOLUMES.items():
        stages.append(
            Stage(
                "generate",
                lambda name=name, genes=genes: [  # type: ignore[misc]
                    "--checkpoint", str(training / "last.ckpt"), "--brain", str(brain), "--region", TEST,
                    "--genes", genes, "--seed", str(options.seed), "--device", options.device,
                    "--out", str(out / f"{name}.zarr"),
                ],
                out / f"{name}.zarr",
            )
        )  # fmt: skip
    given = ["--brain", str(brain), *(part for name in VOLUMES for part in (f"--{name}", str(out / f"{name}.zarr")))]
    evaluation = out / "evaluation"
    stages.append(
        Stage(
            "evaluate",
            lambda: [*given, "--train-region", TRAIN, "--out", str(evaluation)],
            evaluation / "metrics.json",
        )
    )
    source = "simulated tissue" if options.input is None else options.input.name
    log = training / "log" / "metrics.csv"
    stages.append(
        Stage(
            "report",
            lambda: [
                *given, "--evaluation", str(evaluation), "--log", str(log), "--title", f"tera-mind demo: {source}",
                "--out", str(out / "report.html"),
            ],
            out / "report.html",
        )
    )  # fmt: skip
    return stages


def ingest_arguments(tissue: Path, brain: Path, pixel_um: float) -> list[str]:
    """Arguments for `tera-mind ingest`, its format told by the files that are there."""
    if not tissue.is_dir():
        raise MissingFileError(f"no folder {tissue}: --input is a Xenium or MERSCOPE folder")
    for kind, marker in (("xenium", "experiment.xenium"), ("merscope", "detected_transcripts.csv")):
        folders = [tissue] if (tissue / marker).is_file() else sorted(f.parent for f in tissue.glob(f"*/{marker}"))
        if folders:
            return [kind, *map(str, folders), "--out", str(brain), "--pixel-um", str(pixel_um)]
    raise InputError(
        f"{tissue} is neither Xenium (experiment.xenium) nor MERSCOPE (detected_transcripts.csv), nor a folder of such"
    )


def recipe_value(recipe: Path, part: str, key: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(recipe.read_text())[part][key]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"recipe {recipe} has no readable {part}.{key}: {error}") from error


def fit_arguments(options: argparse.Namespace, recipe: Path, shards: Path, training: Path, start: float) -> list[str]:
    """Arguments for `tera-mind fit`: all the time that generation, evaluation and report will not need."""
    from tera_mind.formats.brain import Brain
    from tera_mind.model.devices import choose_device, choose_precision

    device = choose_device(options.device)
    brain = Brain.open(options.out / "brain.zarr")
    megapixels = len(brain.sections) * brain.canvas.height * brain.canvas.width * 0.4 / 1e6
    later = (
        EVALUATE_S + EVALUATE_S_PER_MEGAPIXEL * megapixels * len(VOLUMES) + generation_seconds(recipe, shards, options)
    )
    seconds = options.minutes * 60 - (time.monotonic() - start) - later
    if seconds < 30:
        raise TeraMindError(
            f"--minutes {options.minutes:g} leaves {seconds:.0f} s for training after {later:.0f} s for generation and "
            f"evaluation: give at least {options.minutes + (90 - seconds) / 60:.0f} minutes"
        )
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    given = [
        "-c", str(recipe), "--data.shards", str(shards), "--trainer.default_root_dir", str(training),
        "--trainer.max_time", f"00:{hours:02d}:{minutes:02d}:{rest:02d}", "--seed_everything", str(options.seed),
        "--data.seed", str(options.seed), "--model.seed", str(options.seed),
        "--trainer.accelerator", "gpu" if device.type == "cuda" else "cpu",
        "--trainer.devices", "1",  # for more, Lightning would start this very command, the demo, again
    ]  # fmt: skip
    if choose_precision("auto", device) == "bf16":
        given += ["--trainer.precision", "bf16-mixed"]
    if options.input is None and options.recipe is None:
        given += ["--model.init_from", str(WEIGHTS)]
    return given


def generation_seconds(recipe: Path, shards: Path, options: argparse.Namespace) -> float:
    """What the volumes will cost, from timing one pass of an untrained network of the recipe's shape."""
    import yaml

    from datamodules.pairs import PairsDataModule
    from tera_mind.cli.fit import method_asked
    from tera_mind.formats.brain import Brain
    from tera_mind.geometry import Box
    from tera_mind.model.checkpoint import Checkpoint
    from tera_mind.model.devices import choose_device, choose_precision
    from tera_mind.module import MODULES
    from tera_mind.sampling.estimate import time_pass
    from tera_mind.sampling.job import Generation, block_of, default_region
    from tera_mind.sampling.launch import Launch, plan_of

    settings = yaml.safe_load(recipe.read_text())
    data = PairsDataModule(str(shards), patch_px=settings["data"]["patch_px"], bin_px=settings["data"]["bin_px"])
    made = MODULES[method_asked(["-c", str(recipe)], MODULES)]
    module = made(data.inputs, **settings["model"] | {"init_from": None})
    brain = Brain.open(options.out / "brain.zarr")
    region = default_region(brain, data.patch_px, Box.parse(TEST, brain.canvas))
    device = choose_device(options.device)
    checkpoint = Checkpoint(module.info, module.network.eval(), "untrained", Path("untrained"))
    block = block_of(region, data.patch_px)
    job = Generation(
        checkpoint,
        brain,
        region,
        tuple(range(len(brain.sections))),
        block_rows=block[0],
        block_columns=block[1],
        precision=choose_precision("auto", device),
    )
    return 1.15 * len(VOLUMES) * plan_of(job, Launch((device,))).blocks * time_pass(job, device).seconds
