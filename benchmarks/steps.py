"""How few sampling steps are enough: quality against steps for every deterministic solver, on tissue it never saw.

A piece of the virtual brain (a seed that no training used) is painted from its genes by the shipped checkpoint, from
one and the same noise, by DDIM, DPM-Solver++(2M) and UniPC-2 in 4 to 25 steps, and goes through
`tera_mind.metrics.evaluate`. Beside the scores stands the distance to what very many small steps make of the same
noise, and 25 steps from other noise, which says what a difference is worth.

A setting is faithful when its seam index, Frechet distance, nuclei and PSNR lie within the reference's 95 % interval
(or on its better side), in every stain, and stay so for every larger number of steps of the same solver. The plain
sampler and the plain network are used: this is about steps, not speed.

    python benchmarks/steps.py [--quick] [--work FOLDER] [--write docs/steps.md]

Given --work, what is done is kept there, and the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from steps_page import METRICS, Setting, faithful, figure, page

import tera_mind
from tera_mind.diffusion.steppers import StepperName
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.bootstrap import cell_difference, cell_mean
from tera_mind.metrics.evaluate import EvaluateSettings, evaluate
from tera_mind.model.checkpoint import Checkpoint, load_checkpoint
from tera_mind.model.devices import choose_precision
from tera_mind.sampling.job import Generation
from tera_mind.sampling.plain import sample_steps, to_uint8

WEIGHTS = Path(tera_mind.__file__).parent / "weights" / "simulated.ckpt"
STEPPERS: tuple[StepperName, ...] = ("ddim", "dpm++", "unipc")
BOOTSTRAP, SEED = 1000, 0
#: side of the squares over which a distance is resampled
CELL_PX = 64


@dataclass(frozen=True)
class Study:
    """What is compared, on a piece of which size: its right-hand square is painted."""

    steps: tuple[int, ...]
    reference: Setting
    solution: Setting
    #: another noise for the reference's setting
    other: Setting
    test_px: int
    height_um: float
    width_um: float

    @property
    def settings(self) -> list[Setting]:
        """In the order they are painted: what others are compared with comes first."""
        every = [Setting(stepper, steps) for steps in reversed(self.steps) for stepper in STEPPERS]
        own = [self.reference, self.other, self.solution]
        return [self.reference, *(setting for setting in every if setting not in own), self.other, self.solution]


FULL = Study((4, 5, 8, 10, 15, 25), Setting("ddim", 25), Setting("ddim", 200), Setting("ddim", 25, 1), 512, 440, 800)
QUICK = Study((4, 8), Setting("ddim", 10), Setting("ddim", 20), Setting("ddim", 10, 1), 256, 230, 440)
TINY = Study((4,), Setting("ddim", 4), Setting("ddim", 5), Setting("ddim", 4, 1), 128, 130, 250)


def make_tissue(folder: Path, study: Study, pixel_um: float) -> Brain:
    """Simulated tissue of a seed that no training of this project uses, by the commands a user types."""
    store = folder / "brain.zarr"
    if not store.exists():
        size = ["--height-um", study.height_um, "--width-um", study.width_um, "--pixel-um", pixel_um]
        command("simulate", "--out", folder / "tissue", "--seed", 11, *size, "--workers", 1)
        sections = sorted((folder / "tissue").glob("section_*"))
        command("ingest", "merscope", *sections, "--out", store, "--pixel-um", pixel_um)
    return Brain.open(store)


def command(*parts: object) -> None:
    line = [sys.executable, "-m", "tera_mind.cli.main", *map(str, parts)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command


class Bench:
    """One checkpoint, one piece of tissue; volumes and rows that are done lie in the folder."""

    def __init__(self, study: Study, folder: Path, checkpoint: Checkpoint, device: torch.device) -> None:
        self.study, self.folder, self.checkpoint, self.device = study, folder, checkpoint, device
        info = checkpoint.info
        self.brain = make_tissue(folder, study, info.pixel_um)
        side = info.model.patch_px
        left = (self.brain.canvas.width - study.test_px) // side * side
        self.test = Box(0, study.test_px, left, left + study.test_px)
        self.train = Box(0, study.test_px, 0, left)
        self.precision = choose_precision("auto", device)
        self.network = checkpoint.network.to(device)

    def facts(self) -> dict[str, Any]:
        """What every row depends on."""
        return {
            "checkpoint": self.checkpoint.sha256,
            "brain": self.brain.fingerprint,
            "test": str(self.test),
            "precision": self.precision,
            "solution": self.study.solution.name,
            "reference": self.study.reference.name,
        }

    def paint(self, setting: Setting) -> Volume:
        """The volume of a setting, from the folder where it is there."""
        path = self.folder / "volumes" / f"{setting.name}.zarr"
        if path.exists():
            return Volume.open(path)
        job = Generation(
            self.checkpoint, self.brain, self.test, (0,), seed=setting.seed, steps=setting.steps,
            stepper=setting.stepper, masked=False, precision=self.precision,
        )  # fmt: skip
        group = job.groups[0]
        narrow = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with narrow:
            for state in sample_steps(
                self.network, job.counts(group), job.noise(group), job.domain(group), job.settings
            ):
                image = state
        info = self.checkpoint.info
        planes = to_uint8(image).cpu().numpy().reshape(info.model.stains, info.model.sections, *image.shape[1:])
        return Volume.write(path, planes[:, :1], job.attributes(self.device))

    def row(self, setting: Setting, reference: dict[str, Any] | None) -> dict[str, Any]:
        """Every figure of a setting as [value, low, high]; `reference` is the reference's row, for paired PSNR."""
        settings = EvaluateSettings(bootstrap=BOOTSTRAP, seed=SEED)
        found = evaluate(self.brain, {"generated": self.paint(setting)}, self.train, settings)
        row: dict[str, Any] = {"stepper": setting.stepper, "steps": setting.steps, "seed": setting.seed}
        for metric in METRICS:
            for stain in self.brain.stains:
                figures = found.row("generated", metric, stain)
                if figures is not None:
                    row[f"{metric}/{stain}"] = [figures.value, figures.low, figures.high]
        boxes = found.arrays["patch_boxes"]
        cells = cell_numbers(boxes[:, 1], boxes[:, 3], int(found.settings["cell_px"]))
        for stain in self.brain.stains:
            row[f"patches/{stain}"] = found.arrays[f"psnr/generated/{stain}"].tolist()
            own = np.array(row[f"patches/{stain}"])
            other = own if reference is None else np.array(reference[f"patches/{stain}"])
            value, low, high, _, _ = cell_difference(own, other, cells, BOOTSTRAP, SEED)
            row[f"psnr_difference/{stain}"] = [value, low, high]
        row["real"] = self._real(found) if setting == self.study.reference else {}
        return row

    def _real(self, found: Any) -> dict[str, Any]:
        """What the same figures are of real tissue: seams of the real image, the rest real against real."""
        out: dict[str, Any] = {}
        for metric in METRICS:
            method = "real" if metric.startswith("seam") else "real_vs_real"
            for stain in self.brain.stains:
                figures = found.row(method, metric, stain)
                if figures is not None:
                    out[f"{metric}/{stain}"] = [figures.value, figures.low, figures.high]
        return out


def cell_numbers(y: np.ndarray, x: np.ndarray, side: int) -> np.ndarray:
    """Number of the square that holds each place, for the block bootstrap."""
    return np.asarray((y // side) * (int(x.max()) // side + 1) + x // side)


def distance(volume: Volume, solution: Volume) -> list[float | None]:
    """Root-mean-square difference of two volumes in grey levels, with its interval over squares of `CELL_PX`."""
    error = (volume.image().astype(np.float64) - solution.image()) ** 2
    cells = [(y, x) for y in range(0, error.shape[2], CELL_PX) for x in range(0, error.shape[3], CELL_PX)]
    values = np.array([error[:, :, y : y + CELL_PX, x : x + CELL_PX].mean() for y, x in cells])
    found = cell_mean(values, np.arange(len(values)), BOOTSTRAP, SEED)[:3]
    return [None if value is None else float(np.sqrt(value)) for value in found]


def collect(bench: Bench) -> list[dict[str, Any]]:
    """Rows of every setting; those in results.json are taken over."""
    path, facts = bench.folder / "results.json", bench.facts()
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"facts": facts, "rows": {}}
    if kept["facts"] != facts:
        raise SystemExit(f"{path} was made with other settings ({kept['facts']}): give another --work")
    rows: dict[str, Any] = kept["rows"]
    for setting in bench.study.settings:
        if setting.name not in rows:
            start = time.monotonic()
            rows[setting.name] = bench.row(setting, rows.get(bench.study.reference.name))
            with atomic_file(path) as partial:
                partial.write_text(json.dumps(kept))
            print(f"{setting.name:<20}{time.monotonic() - start:>7.0f} s", flush=True)
    solution = bench.paint(bench.study.solution)
    for setting in bench.study.settings:
        rows[setting.name]["distance"] = distance(bench.paint(setting), solution)
    return [rows[setting.name] for setting in bench.study.settings]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--quick", action="store_true", help="a smaller piece and fewer settings: under 3 minutes")
    add("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--checkpoint", type=Path, default=WEIGHTS, help="checkpoint of simulated tissue (default: the shipped one)")
    add("--work", type=Path, help="folder that keeps what is done (default: a temporary one)")
    add("--write", type=Path, help="Markdown file to write; its figure goes to img/steps.png beside it")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    study = TINY if options.tiny else QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(study, folder, load_checkpoint(options.checkpoint), torch.device(options.device))
        about = (
            f"{bench.test.height} x {bench.test.width} px of {bench.brain.pixel_um:g} um, stains "
            f"{' and '.join(bench.brain.stains)}, checkpoint {bench.checkpoint.sha256[:12]}, "
            f"{bench.precision.replace('32', 'float32')} on {options.device} ({platform.machine()}, "
            f"{os.cpu_count()} cores), torch {torch.__version__}"
        )
        print(about, flush=True)
        rows = collect(bench)
        stains = bench.brain.stains
    verdicts = faithful(rows, study.reference)
    chosen = [Setting(row["stepper"], row["steps"]) for row, verdict in zip(rows, verdicts, strict=True) if not verdict]
    cheapest = min(chosen, key=lambda setting: (setting.steps, STEPPERS.index(setting.stepper)))
    text = page(rows, verdicts, stains, about, study.reference, study.solution, cheapest)
    if options.write is not None:
        picture = options.write.parent / "img" / "steps.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((picture, figure(rows, stains, study.reference)), (options.write, text.encode())):
            with atomic_file(path) as partial:
                partial.write_bytes(content)
    print(text if options.write is None else f"table: {options.write}")
    kept = [{key: value for key, value in row.items() if not key.startswith("patches/")} for row in rows]
    ratio = 15 / cheapest.steps
    result = {"benchmark": "steps", "ratio": ratio, "cheapest": cheapest.name, "rows": kept, "about": about}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
