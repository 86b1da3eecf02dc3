"""Which metric sees what: real tissue, damaged by degrees, put in the place of a generated volume.

A section of real tissue (the Xenium crop under TERA_MIND_REAL_DATA; simulated tissue where there is none) plays both
parts. The "generated" volume is the same tissue with a little noise (the baseline), or damaged besides: blurred,
noisier, shifted, stepped at patch borders, robbed of nuclei, dimmed, or its patches put in each other's places, which
is what a model paints that does not listen to its genes. Every volume goes through
`tera_mind.metrics.evaluate.evaluate`.

A cell of the table is the change against the baseline in the metric's own half-width of the 95 % interval: below 1
nothing is seen, and the sign says whether the metric calls the damage worse (+) or better (-). Metrics without a better
side are left out.

    python benchmarks/sensitivity.py [--quick] [--workers 1] [--write docs/sensitivity.md]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.metrics.evaluate import EvaluateSettings, Evaluation, evaluate
from tera_mind.metrics.nuclei.segmenters import NucleusSettings, Watershed
from tera_mind.metrics.table import METRICS

PATCH_PX = 64
#: grey levels of the noise that every volume carries
BASELINE_NOISE = 1.0
#: columns of the table: metric -> its heading
COLUMNS = {
    "psnr": "PSNR", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "pearson_blur": "r, blurred",
    "frechet": "Frechet", "kernel": "kernel", "spectrum_distance": "spectrum", "histogram_wasserstein": "histogram",
    "seam_index": "seam index", "seam_step": "seam step", "seam_spectrum": "seam spectrum",
    "nuclei_count_r": "nuclei r", "nuclei_count_ratio": "nuclei ratio", "nuclei_f1": "nuclei F1",
    "nucleus_area_ks": "area KS", "nucleus_intensity_ks": "intensity KS", "gene_recovery": "gene recovery",
}  # fmt: skip

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Damage:
    """What is done to a plane of float32 grey levels, and how much of it."""

    name: str
    amount: str
    apply: Callable[[Image], Image]


def real_tissue(folder: Path, pixel_um: float) -> Brain:
    """A brain store of the Xenium crop, or of simulated tissue, made by the commands a user types."""
    data = Path(os.environ.get("TERA_MIND_REAL_DATA", "../shared/real")) / "xenium_breast_crop"
    if data.is_dir():
        command = ["ingest", "xenium", data, "--out", folder / "brain.zarr", "--pixel-um", pixel_um]
        tera_mind(*command)
    else:
        tera_mind("simulate", "--out", folder / "tissue", "--pixel-um", pixel_um)
        sections = sorted((folder / "tissue").glob("section_*"))
        tera_mind("ingest", "merscope", *sections, "--out", folder / "brain.zarr", "--pixel-um", pixel_um)
    return Brain.open(folder / "brain.zarr")


def tera_mind(*command: object) -> None:
    line = [sys.executable, "-m", "tera_mind.cli.main", *map(str, command)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command


def patches(plane: Image) -> NDArray[np.int64]:
    """The row-major number of each pixel's patch."""
    rows, columns = (np.arange(size) // PATCH_PX for size in plane.shape)
    return rows[:, None] * (columns[-1] + 1) + columns


def stepped(percent: float) -> Callable[[Image], Image]:
    """Every other patch brighter, like a chessboard."""

    def apply(plane: Image) -> Image:
        rows, columns = (np.arange(size) // PATCH_PX % 2 for size in plane.shape)
        return plane * (1 + percent / 100 * (rows[:, None] ^ columns)).astype(np.float32)

    return apply


def smoothed_borders(width_px: int) -> Callable[[Image], Image]:
    """A blur on a band along patch borders only."""

    def apply(plane: Image) -> Image:
        near = [
            np.minimum(np.arange(size) % PATCH_PX, PATCH_PX - 1 - np.arange(size) % PATCH_PX) for size in plane.shape
        ]
        band = (near[0][:, None] < width_px) | (near[1] < width_px)
        return np.where(band, ndimage.gaussian_filter(plane, 2.0), plane)

    return apply


def displaced(share: float) -> Callable[[Image], Image]:
    """A share of whole patches put in each other's places."""

    def apply(plane: Image) -> Image:
        side = 2 * PATCH_PX
        rows, columns = plane.shape[0] // side, plane.shape[1] // side
        random = np.random.default_rng(7)
        moved = random.permutation(rows * columns)[: round(share * rows * columns)]
        out = plane.copy()
        for target, source in zip(moved, np.roll(moved, 1), strict=True):
            (y, x), (v, u) = (np.array(divmod(int(n), columns)) * side for n in (target, source))
            out[y : y + side, x : x + side] = plane[v : v + side, u : u + side]
        return out

    return apply


def without_nuclei(share: float, pixel_um: float) -> Callable[[Image], Image]:
    """A share of the nuclei painted over with the darkest level around them."""

    def apply(plane: Image) -> Image:
        image = np.clip(plane, 0, 255).astype(np.uint8)
        segmenter = Watershed(pixel_um, NucleusSettings())
        labels = segmenter.segment(image, segmenter.calibrate([image]))
        random = np.random.default_rng(8)
        gone = np.flatnonzero(random.random(int(labels.max()) + 1) < share)
        around = round(10 / pixel_um)
        mask = ndimage.binary_dilation(np.isin(labels, gone[gone > 0]), iterations=max(1, round(1 / pixel_um)))
        dark = ndimage.gaussian_filter(ndimage.minimum_filter(plane, around), around / 2)
        return np.where(mask, dark, plane)

    return apply


def shifted(pixels: int) -> Callable[[Image], Image]:
    return lambda plane: np.roll(plane, pixels, axis=1)


def noisy(sd: float) -> Callable[[Image], Image]:
    return lambda plane: plane + np.random.default_rng(9).normal(0, sd, plane.shape).astype(np.float32)


def blurred(sigma_px: float) -> Callable[[Image], Image]:
    return lambda plane: ndimage.gaussian_filter(plane, sigma_px)


def damages(pixel_um: float, *, quick: bool) -> list[Damage]:
    """Every damage, the least amount first."""
    table: list[Damage] = []
    table += [Damage("blur", f"sigma {s:g} px", blurred(s)) for s in (0.5, 1.0, 2.0, 4.0)]
    table += [Damage("noise", f"sd {sd:g}", noisy(sd)) for sd in (2.0, 5.0, 15.0)]
    table += [Damage("shift", f"{px} px", shifted(px)) for px in (1, 2, 4, 8, 16, 32)]
    table += [Damage("step at patch borders", f"{p:g} %", stepped(p)) for p in (0.5, 2.0, 8.0)]
    table += [Damage("smooth patch borders", f"{px} px", smoothed_borders(px)) for px in (1, 3)]
    table += [Damage("nuclei missing", f"{100 * s:g} %", without_nuclei(s, pixel_um)) for s in (0.05, 0.2, 0.5)]
    table += [Damage("dimmed", f"x {f:g}", lambda plane, f=f: plane * np.float32(f)) for f in (0.95, 0.7)]
    table += [Damage("patches displaced", f"{100 * s:g} %", displaced(s)) for s in (0.1, 0.5, 1.0)]
    if not quick:
        return table
    chosen = {("blur", "sigma 1 px"), ("step at patch borders", "2 %"), ("patches displaced", "100 %")}
    return [damage for damage in table if (damage.name, damage.amount) in chosen]


class Bench:
    """One piece of tissue, and volumes made of it."""

    def __init__(self, brain: Brain, folder: Path, workers: int) -> None:
        height, width = brain.canvas.height, brain.canvas.width
        cut = width // 2 // PATCH_PX * PATCH_PX
        self.brain, self.folder = brain, folder
        self.train = Box(0, height, 0, cut)
        self.test = Box(0, height // PATCH_PX * PATCH_PX, cut, cut + (width - cut) // PATCH_PX * PATCH_PX)
        self.settings = EvaluateSettings(workers=workers, region_px=512)
        self.real = brain.image(self.test).astype(np.float32)

    def evaluation(self, damage: Damage | None) -> Evaluation:
        image = self.real.copy()
        random = np.random.default_rng(6)
        for stain in range(image.shape[0]):
            for section in range(image.shape[1]):
                plane = image[stain, section] if damage is None else damage.apply(image[stain, section])
                image[stain, section] = plane + random.normal(0, BASELINE_NOISE, plane.shape)
        attributes = VolumeAttributes(
            stains=self.brain.stains, pixel_um=self.brain.pixel_um, brain="real", checkpoint="0" * 64, seed=0, steps=1,
            brain_fingerprint=self.brain.fingerprint, box=self.test, patch_px=PATCH_PX,
            sections=tuple(range(len(self.brain.sections))),
        )  # fmt: skip
        made = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        volume = Volume.write(self.folder / "generated.zarr", made, attributes)
        return evaluate(self.brain, {"generated": volume}, self.train, self.settings)


def responses(found: Evaluation, baseline: Evaluation) -> dict[str, float | None]:
    """Change of each metric against the baseline, in half-widths of the interval, positive for worse."""
    out: dict[str, float | None] = {}
    for metric in COLUMNS:
        stain = "" if metric == "gene_recovery" else baseline.settings["stains"][0]
        now, then = found.row("generated", metric, stain), baseline.row("generated", metric, stain)
        out[metric] = None
        if now is None or then is None or now.value is None or then.value is None:
            continue
        better = METRICS[metric][1]
        cost = {"higher": then.value - now.value, "lower": now.value - then.value}
        change = cost.get(better, abs(now.value - 1) - abs(then.value - 1))
        widths = [(r.high - r.low) / 2 for r in (now, then) if r.low is not None and r.high is not None]
        if widths and max(widths) > 0:
            out[metric] = change / max(widths)
    return out


def symbol(response: float | None) -> str:
    if response is None:
        return "?"
    size = abs(response)
    mark = "." if size < 1 else "+" if size < 2 else "++" if size < 5 else "+++"
    return mark if response > 0 or mark == "." else mark.replace("+", "-")


def markdown(rows: list[dict[str, object]], columns: Sequence[str], about: str) -> str:
    head = ["damage", "amount", *(COLUMNS[column] for column in columns)]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        seen = row["response"]
        assert isinstance(seen, dict)
        lines.append(" | ".join([str(row["damage"]), str(row["amount"]), *(symbol(seen[c]) for c in columns)]))
    table = "\n".join(f"| {line} |" for line in lines)
    return f"""# Which metric sees what

Real tissue, damaged by degrees, in the place of a generated volume, through `tera-mind evaluate`. A cell is the
change against the undamaged baseline (the same tissue with noise of 1 grey level) in half-widths of the metric's 95 %
interval: `.` below 1, `+` to 2, `++` to 5, `+++` above; `-` where the metric calls the damage an improvement; `?`
where it has no value or no interval.

{about}

{table}

Made by `python benchmarks/sensitivity.py --write docs/sensitivity.md`; the numbers are in its last line.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three damages on a smaller piece")
    parser.add_argument("--pixel-um", type=float, default=0.2125, help="pixel size to work at (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default %(default)s)")
    parser.add_argument("--device", choices=("cpu",), default="cpu", help="evaluation runs on CPUs")
    parser.add_argument("--write", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        brain = real_tissue(folder, 2 * options.pixel_um if options.quick else options.pixel_um)
        bench = Bench(brain, folder, options.workers)
        baseline = bench.evaluation(None)
        rows: list[dict[str, object]] = []
        for damage in damages(brain.pixel_um, quick=options.quick):
            found = bench.evaluation(damage)
            seen = responses(found, baseline)
            rows.append({"damage": damage.name, "amount": damage.amount, "response": seen})
            print(
                f"{damage.name:<24}{damage.amount:<14}" + "".join(f"{symbol(v):>5}" for v in seen.values()), flush=True
            )
    source = (
        "the Xenium breast crop" if "xenium" in str(brain.attributes["sections"][0]).lower() else "simulated tissue"
    )
    about = (
        f"Tissue: {source}, {bench.test.height} x {bench.test.width} px of {brain.pixel_um:g} um, patches of "
        f"{PATCH_PX} px, stain {brain.stains[0]}. Machine: {platform.machine()}, {os.cpu_count()} cores."
    )
    text = markdown(rows, list(COLUMNS), about)
    if options.write is not None:
        with atomic_file(options.write) as path:
            path.write_text(text, encoding="utf-8")
    print(text if options.write is None else f"table: {options.write}")
    step = next(row["response"] for row in rows if (row["damage"], row["amount"]) == ("step at patch borders", "2 %"))
    print(json.dumps({"benchmark": "sensitivity", "two_percent_step": step, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
