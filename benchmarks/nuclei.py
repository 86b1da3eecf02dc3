"""How well the watershed finds nuclei that people have outlined: F1 at an intersection over union of 0.5.

The annotated images are split by a rule made before anything was tuned. Images of a source (a folder of the mnfinder
wheel) are sorted by name and go to the tuned and the held-out half in turn; an image that is there twice is only tuned
on; the one image of nuclei_2d is cut into a left half, tuned, and a right one, held out. Settings and the joining rule
of `tera_mind.metrics.nuclei.watershed` were chosen on the tuned half, by its F1 averaged over the sources; `--fit` fits
the rule anew and shows it.

None of the images records its pixel size. Each is scaled so that its median annotated nucleus has the typical diameter
of the settings - the one number of the held-out annotation that is used - and the F1 with that diameter 25 % too small
and too large shows what it is worth. Nuclei are the connected parts of a colour of the annotation: one image uses
colours twice.

    pip download --no-deps mnfinder==1.2.3 && unzip mnfinder-1.2.3-py3-none-any.whl -d mnfinder
    python benchmarks/nuclei.py --mnfinder mnfinder --nuclei-2d FOLDER_OF_IMG2D_AND_MASK2D [--fit] [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from scipy.optimize import minimize

from tera_mind.geometry import Box
from tera_mind.metrics.nuclei.join import Regions, Rule
from tera_mind.metrics.nuclei.match import Matches, match
from tera_mind.metrics.nuclei.watershed import JOIN, NucleusSettings, calibrate, segment, segment_parts

#: the diameter of the settings is off by this factor
FACTORS = (1.0, 0.75, 1.25)
HALVES = ("tuned", "held out")


@dataclass(frozen=True)
class Annotated:
    """An image with its nuclei outlined; `core` is the part that counts."""

    source: str
    half: str
    image: np.ndarray
    truth: np.ndarray
    core: Box

    @property
    def diameter_px(self) -> float:
        area = np.bincount(self.truth.ravel())[1:]
        return float(2 * np.sqrt(np.median(area[area > 0]) / np.pi))


def to_uint8(raw: np.ndarray) -> np.ndarray:
    low, high = np.percentile(raw, [1, 99.9])
    return np.clip(np.rint((raw - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def colour_labels(path: Path) -> np.ndarray:
    """Connected parts of each colour, 1, 2, ...; black is background."""
    colours = np.asarray(Image.open(path).convert("RGB"), np.int64) @ [65536, 256, 1]
    labels, count = np.zeros(colours.shape, np.int32), 0
    for colour in np.unique(colours[colours > 0]):
        parts, found = ndimage.label(colours == colour, np.ones((3, 3)))
        labels[parts > 0] = parts[parts > 0] + count
        count += found
    return labels


def mnfinder_images(folder: Path) -> list[Annotated]:
    paths = sorted(folder.glob("**/nucleus_masks/*.png"), key=lambda p: (p.parts[-3], p.stem, p.parts[-4]))
    raws = [np.asarray(tifffile.imread(path.parents[1] / "images" / f"{path.stem}.tif"), np.float64) for path in paths]
    prints = [hashlib.sha256(raw.tobytes()).hexdigest() for raw in raws]
    place: dict[str, int] = {}
    found = []
    for path, raw, fingerprint in zip(paths, raws, prints, strict=True):
        source = path.parts[-3]
        place[source] = place.get(source, -1) + 1
        half = HALVES[0] if prints.count(fingerprint) > 1 else HALVES[place[source] % 2]
        core = Box(0, raw.shape[0], 0, raw.shape[1])
        found.append(Annotated(source, half, to_uint8(raw), colour_labels(path), core))
    return found


def nuclei_2d_images(folder: Path) -> list[Annotated]:
    image = to_uint8(np.asarray(tifffile.imread(folder / "img2d.tif"), np.float64))
    truth = np.asarray(tifffile.imread(folder / "mask2d.tif"), np.int32)
    height, width = image.shape
    cores = (Box(0, height, 0, width // 2), Box(0, height, width // 2, width))
    return [Annotated("nuclei_2d", half, image, truth, core) for half, core in zip(HALVES, cores, strict=True)]


def score(item: Annotated, settings: NucleusSettings, rule: Rule, factor: float = 1.0) -> Matches:
    """Matches of one image, segmented with a diameter that is off by `factor`."""
    pixel_um = settings.diameter_um / (item.diameter_px * factor)
    scale = calibrate([item.image], pixel_um, settings)
    return match(item.truth, segment(item.image, pixel_um, scale, settings, rule), item.core)


def fit_rule(items: Sequence[Annotated], settings: NucleusSettings) -> Rule:
    """Logistic regression of "both basins lie on one annotated nucleus" on the tuned half; sources weigh alike."""
    features, same, sources = [], [], []
    for item in items:
        pixel_um = settings.diameter_um / item.diameter_px
        parts, lifted = segment_parts(item.image, pixel_um, calibrate([item.image], pixel_um, settings), settings)
        parts[: item.core.y0], parts[item.core.y1 :] = 0, 0
        parts[:, : item.core.x0], parts[:, item.core.x1 :] = 0, 0
        regions = Regions(parts, np.sqrt(np.maximum(lifted, 0)))
        width = int(item.truth.max()) + 1
        joint = np.bincount(parts.ravel().astype(np.int64) * width + item.truth.ravel())
        owner = np.pad(joint, (0, -len(joint) % width)).reshape(-1, width).argmax(axis=1)
        for a, b in regions.pairs():
            features.append(regions.features(a, b, np.pi * item.diameter_px**2 / 4))
            same.append(owner[a] == owner[b] > 0)
            sources.append(item.source)
    table, sign = np.array(features), np.where(same, -1.0, 1.0)
    names, which = np.unique(sources, return_inverse=True)
    weight = 1 / np.bincount(which)[which] / len(names)
    mean, spread = table.mean(axis=0), table.std(axis=0)

    def loss(w: np.ndarray) -> float:
        return float(weight @ np.logaddexp(0, sign * ((table - mean) / spread @ w[1:] + w[0])) + 1e-3 * w[1:] @ w[1:])

    fitted = minimize(loss, np.zeros(table.shape[1] + 1)).x
    weights = fitted[1:] / spread
    return Rule(float(fitted[0] - weights @ mean), *(float(w) for w in weights))


def add(matches: Sequence[Matches]) -> Matches:
    return Matches(*(sum(column) for column in zip(*matches, strict=True)))


def measure(items: Sequence[Annotated], settings: NucleusSettings, rule: Rule) -> list[dict[str, Any]]:
    """One row a half and source, and one of all sources; every diameter."""
    found = [(item, [score(item, settings, rule, factor) for factor in FACTORS]) for item in items]
    rows = []
    for half in HALVES:
        for source in [*sorted({item.source for item in items}), "all"]:
            own = [matches for item, matches in found if item.half == half and source in {item.source, "all"}]
            if not own:
                continue
            exact, *off = (add(column) for column in zip(*own, strict=True))
            rows.append(
                {"half": half, "source": source, "images": len(own), "annotated": exact.a, "found": exact.b,
                 "matched": exact.tp, "f1": exact.f1, "f1_diameter_off": [m.f1 for m in off]}
            )  # fmt: skip
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="F1 of the watershed on annotated nuclei, tuned and held-out halves.",
        epilog="example: python benchmarks/nuclei.py --mnfinder mnfinder --nuclei-2d real/nuclei_2d",
    )
    made.add_argument("--mnfinder", type=Path, help="folder of the unzipped mnfinder wheel")
    made.add_argument("--nuclei-2d", type=Path, help="folder with img2d.tif and mask2d.tif")
    made.add_argument("--fit", action="store_true", help="fit the joining rule to the tuned half and use that one")
    made.add_argument("--quick", action="store_true", help="two images a source and half at most")
    return made


def load(options: argparse.Namespace) -> list[Annotated]:
    items = []
    for name, folder, read in (
        ("mnfinder", options.mnfinder, mnfinder_images),
        ("nuclei_2d", options.nuclei_2d, nuclei_2d_images),
    ):
        if folder is None or not folder.is_dir():
            print(f"skipped {name}: {'no folder given' if folder is None else f'no folder {folder}'}")
        else:
            items += read(folder)
    if options.quick:
        place: dict[tuple[str, str], int] = {}
        kept = []
        for item in items:
            key = (item.source, item.half)
            place[key] = place.get(key, 0) + 1
            kept += [item] if place[key] <= 2 else []
        return kept
    return items


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    items = load(options)
    settings = NucleusSettings()
    rule = JOIN
    result: dict[str, Any] = {"benchmark": "nuclei", "settings": asdict(settings), "rows": []}
    if not items:
        print("no annotated images: nothing measured")
        print(json.dumps(result | {"f1_held_out": None}))
        return 0
    if options.fit:
        rule = fit_rule([item for item in items if item.half == HALVES[0]], settings)
        print("fitted:", ", ".join(f"{name} {value:.2f}" for name, value in asdict(rule).items()))
    start = time.process_time()
    rows = measure(items, settings, rule)
    seconds = time.process_time() - start
    megapixels = len(FACTORS) * sum(item.image.size for item in items) / 1e6
    print(f"{'half':<9} {'source':<18} images annotated found matched     F1   F1 with a diameter of x0.75, x1.25")
    for row in rows:
        off = ", ".join(f"{value:.3f}" for value in row["f1_diameter_off"])
        print(
            f"{row['half']:<9} {row['source']:<18} {row['images']:>6} {row['annotated']:>9} {row['found']:>5} "
            f"{row['matched']:>7} {row['f1']:>6.3f}   {off}"
        )
    print(f"\n{seconds / megapixels:.2f} CPU seconds a megapixel, calibration included")
    held = next((row["f1"] for row in rows if (row["half"], row["source"]) == (HALVES[1], "all")), None)
    result |= {"rows": rows, "rule": asdict(rule), "f1_held_out": held, "s_per_megapixel": seconds / megapixels}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
