"""The virtual brain against what is stated of real tissue: every statistic beside its value, pictures beside real ones.

    python benchmarks/simulator_realism.py [--quick] [--write]

`--write` puts the table between the markers of docs/simulator.md and the pictures into docs/img. Pictures of real
tissue and distances to it need TERA_MIND_REAL_DATA (a MERSCOPE and a Xenium sample); without it they are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from realism_of_cells import CORTEX, Row, rows_of_cells
from scipy import ndimage

from tera_mind.geometry import Box
from tera_mind.simulate import celltypes, regions
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.optics import BYTE_FLOOR, CAMERA_LEVEL
from tera_mind.simulate.transcripts import PLACES, TranscriptRows
from tera_mind.simulate.windows import VirtualBrain

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- table -->", "<!-- end of table -->"


def tissue_windows(brain: VirtualBrain, count: int, side: int, wanted: Sequence[str] = ()) -> list[tuple[int, Box]]:
    """Windows in tissue, spread over the sections."""
    random = np.random.default_rng(0)
    pixel, found, tries = brain.settings.pixel_um, [], 0
    height, width = brain.settings.pixels
    while len(found) < count:
        tries += 1  # a section may lack what is wanted: others are tried after a while
        section = (int((len(found) + 0.5) / count * brain.settings.sections) + tries // 100) % brain.settings.sections
        y, x = int(random.integers(0, height - side)), int(random.integers(0, width - side))
        at = np.array([y, y + side / 2, y + side]), np.array([x, x + side / 2, x + side])
        names = {regions.REGIONS[r].name for r in brain.regions_at(section, *(part * pixel for part in at))}
        if not names & {"outside", "ventricle"} and (not wanted or names <= set(wanted)):
            found.append((section, Box(y, y + side, x, x + side)))
    return found


def rows_of_images(brain: VirtualBrain, count: int) -> list[Row]:
    """Statistics of DAPI at 0.108 um, 16 bit and 8 bit, over windows of the whole brain."""
    levels, eight, ratio, spread, planes, noise = [], [], [], [], [], []
    edges: list[np.ndarray] = []
    low, high = replace(brain.settings, planes=7), replace(brain.settings, bits=8)
    for index, (section, box) in enumerate(tissue_windows(brain, count, 1024)):
        window = brain.window(section, box)
        image, inside = window.images[0, 0].astype(float), window.labels > 0
        levels.append(image)
        eight.append(VirtualBrain(high).window(section, box).images[0, 0].astype(float))
        ratio.append(np.median(image[~inside]) / np.median(image[inside]))
        spread += interior_cv(image, window.labels)
        edges.append(edge_profile(image, window.labels))
        noise.append(pixel_noise(image, inside))
        if index < 4:
            deep = VirtualBrain(low).window(section, box).images[0].astype(float)
            planes.append(
                [
                    np.mean([np.corrcoef(deep[k].ravel(), deep[k + gap].ravel())[0, 1] for k in range(7 - gap)])
                    for gap in (1, 3)
                ]
            )
    flat = np.concatenate([image.ravel() for image in eight])
    p90, p99, p999 = np.percentile(flat, (90, 99, 99.9))
    outside = VirtualBrain(high).window(25, Box(0, 256, 0, 256)).images[0, 0]
    by_plane = np.mean(planes, axis=0)
    dark, bright = np.nanmedian(np.array(noise), axis=0)
    return [
        Row("DAPI, 8 bit, outside tissue", 8, float(outside.mean())),
        Row("DAPI, 8 bit, tissue p90", 56, p90),
        Row("DAPI, 8 bit, tissue p99", 128, p99),
        Row("DAPI, 8 bit, tissue p99.9", 188, p999),
        Row("DAPI, 16 bit, background / nucleus", 0.25, float(np.mean(ratio))),
        Row(
            "DAPI, interior CV of a nucleus",
            0.10,
            float(np.median(spread)),
            "of the inner half, smoothed by 0.2 um; holds chromocentres",
        ),
        Row("DAPI, edge 10-90 %, um", 3.6, edge_width(np.nanmean(edges, axis=0)), "with its halo, mean over nuclei"),
        Row("DAPI, correlation of adjacent z planes (1.5 um)", 0.99, float(by_plane[0])),
        Row("DAPI, correlation of z planes three apart", 0.96, float(by_plane[1])),
        Row("pixel noise sd, background, 16 bit", 120, dark, "14 grey levels an electron at all levels"),
        Row("pixel noise sd, bright, 16 bit", 400, bright, "where a nucleus is brighter than 9,000"),
    ]


def interior_cv(image: np.ndarray, labels: np.ndarray) -> list[float]:
    smooth, found = ndimage.gaussian_filter(image, 2), []
    depth = ndimage.distance_transform_edt(labels > 0)
    for number, where in enumerate(ndimage.find_objects(ndimage.label(labels > 0)[0])):
        del number
        own = depth[where]
        core = own > 0.5 * own.max()
        if own.max() > 20:
            values = smooth[where][core]
            found.append(values.std() / values.mean())
    return found


def edge_profile(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean brightness by signed distance from a nucleus' edge, -3 to 5 um in steps of 0.2 um (NaN where none)."""
    distance = (ndimage.distance_transform_edt(labels == 0) - ndimage.distance_transform_edt(labels > 0)) * 0.108
    index = np.floor((distance + 3.0) / 0.2).astype(int)
    kept = (index >= 0) & (index < 40)
    total = np.bincount(index[kept], weights=image[kept], minlength=40)
    count = np.bincount(index[kept], minlength=40)
    return np.where(count > 200, total / np.maximum(count, 1), np.nan)


def edge_width(profile: np.ndarray) -> float:
    steps = -3.0 + 0.2 * (np.arange(len(profile)) + 0.5)
    low, high = np.nanmin(profile), np.nanmax(profile)
    share = (profile - low) / (high - low)
    return float(steps[np.nonzero(share > 0.1)[0].max()] - steps[np.nonzero(share > 0.9)[0].max()])


def pixel_noise(image: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Standard deviation of a pixel against the mean of its neighbours, between cells and in nuclei."""
    around = ndimage.uniform_filter(image, 3) * 9 / 8 - image / 8
    residual = (image - around) / np.sqrt(9 / 8)
    core = ndimage.binary_erosion(inside, iterations=12) & (ndimage.gaussian_filter(image, 2) > 9000)
    far = ~ndimage.binary_dilation(inside, iterations=40)
    return tuple(float(residual[part].std()) if part.sum() > 200 else np.nan for part in (far, core))  # type: ignore[return-value]


def rows_of_transcripts(brain: VirtualBrain, count: int) -> list[Row]:
    s = brain.settings
    side = int(220 / s.pixel_um)
    area = (side * s.pixel_um) ** 2
    parts, cells = [], []
    for section, box in tissue_windows(brain, count, side):
        parts.append(brain.transcripts(section, box))
        cells.append(brain.cells_near(section, box, 60.0))
    density = sum(map(len, parts)) / (area * len(parts)) * 100
    cortex = tissue_windows(brain, max(4, count // 4), side, CORTEX)
    dense = np.mean([len(brain.transcripts(*place)) for place in cortex]) / area * 100
    patch = density / 100 * (64 * 0.108) ** 2
    rows = [
        Row("transcripts a 100 um2 of tissue, 500 genes", (45, 75), density),
        Row("the same in cortex, relative to the brain", 113 / 97, dense / density),
        Row("transcripts a bin of 16 px (0.108 um)", (1.8, 2.9), density / 100 * (16 * 0.108) ** 2),
        Row("transcripts a patch of 64 px", (29, 46), patch),
    ]
    whole = TranscriptRows.join(parts)
    rows += place_rows(brain, parts, cells, whole)
    return rows


def place_rows(brain: VirtualBrain, parts: list, cells: list, whole: TranscriptRows) -> list[Row]:
    neuron = np.array([kind.neuron for kind in celltypes.TYPES])
    kinds, passed = [], []
    for rows, own in zip(parts, cells, strict=True):
        index = np.clip(np.searchsorted(own.cell, rows.cell), 0, len(own) - 1)
        kinds.append(np.where(rows.cell > 0, own.kind[index], -1))
        passed.append(own.passes_qc[index] & (rows.cell > 0))
    kind, qc = np.concatenate(kinds), np.concatenate(passed)
    out = []
    for label, meant, stated in (("neurons", neuron, (25, 35, 40)), ("glia", ~neuron, (45, 40, 15))):
        own = (kind >= 0) & meant[kind]
        for place, value in enumerate(stated):
            out.append(
                Row(
                    f"transcripts of {label} in {PLACES[place]}, %",
                    value,
                    100 * float((whole.place[own] == place).mean()),
                )
            )
    labelled = float((qc & (whole.place == 0)).mean())
    out.append(
        Row(
            "transcripts outside labelled cells, %",
            83,
            100 * (1 - labelled),
            "labelled: nuclei of cells that pass quality control",
        )
    )
    blank = (whole.gene >= len(brain.genes)).mean() * (len(brain.genes) + 5) / 5
    out.append(Row("misidentified, %", (1, 2), 100 * float(blank), "from the rate of blank barcodes"))
    inner = whole.take((whole.place < 2) & (whole.gene < len(brain.genes)))
    both = np.bincount(inner.gene, minlength=len(brain.genes))
    nuclear = np.bincount(inner.gene[inner.place == 0], minlength=len(brain.genes))
    share = (nuclear / np.maximum(both, 1))[both > 50]
    for percent, stated in ((5, 0.19), (50, 0.41), (95, 0.71)):
        out.append(Row(f"nuclear share of a gene, {percent} %", stated, float(np.percentile(share, percent))))
    out.append(Row("fall of density outside a soma, um", 4.0, fall_um(parts, cells)))
    out += dispersion_rows(brain, cells)
    return out


def fall_um(parts: list, cells: list) -> float:
    """Decay length of neuropil transcripts with distance from the soma of their cell."""
    far = []
    for rows, own in zip(parts, cells, strict=True):
        outer = rows.take((rows.place == 2) & (rows.cell > 0))
        index = np.searchsorted(own.cell, outer.cell)
        good = (index < len(own)) & (own.cell[np.minimum(index, len(own) - 1)] == outer.cell)
        index, outer = index[good], outer.take(good)
        far.append(np.hypot(outer.y_um - own.y_um[index], outer.x_um - own.x_um[index]) - own.soma_um[index])
    return float(np.mean(np.concatenate(far)))


def dispersion_rows(brain: VirtualBrain, cells: list) -> list[Row]:
    """r of the negative binomial over cells of one type: m^2 / (v - m), for genes with a mean above 1; marker means."""
    index, found = celltypes.INDEX["L56 exc"], []
    means: dict[str, list[np.ndarray]] = {}
    for own in cells:
        counts = brain.transcriptome.counts(own, 0)
        found.append(counts[own.kind == index])
        for name in ("L23 exc", "Astrocyte", "Oligodendrocyte", "Thal exc"):
            means.setdefault(name, []).append(counts[own.kind == celltypes.INDEX[name]])
    counts = np.concatenate(found)
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    many = mean > 1
    rows = [
        Row(
            "dispersion r of counts over cells of a type",
            2,
            float(np.median(mean[many] ** 2 / (variance[many] - mean[many]))),
        )
    ]
    factor = brain.transcriptome.factor
    for name, gene, stated in (
        ("L23 exc", "Slc17a7", 30), ("Astrocyte", "Slc1a3", 18), ("Oligodendrocyte", "Mog", 11),
        ("Thal exc", "Slc17a6", 22),
    ):  # fmt: skip
        seen = np.concatenate(means[name])[:, brain.genes.index(gene)].mean() / factor
        rows.append(
            Row(
                f"{gene} a cell of {name}, before the global factor", stated, float(seen), f"the factor is {factor:.3g}"
            )
        )
    return rows


def rows_of_learning(quick: bool) -> list[Row]:
    """What genes tell: cell types, and a blurred stain."""
    from learnable import classifier_accuracy, ridge_r2

    brain = VirtualBrain(Settings.of("main", "brain", misregister=0.0))
    windows = tissue_windows(brain, 24 if quick else 60, 3200)
    accuracy = classifier_accuracy(brain, windows)
    found = ridge_r2(VirtualBrain(Settings.of("main", "demo", genes=500, width_um=1100.0, corner_um=(76.0, 0.0))))
    words = [
        f"genes shuffled in patches: {found['shuffled'][k]:.2f}, labels of genes shuffled: {found['labels'][k]:.2f}"
        for k in (0, 1)
    ]
    return [
        Row(
            "cell type from genes alone, % right (at least)",
            (90, 100),
            100 * accuracy,
            "naive Bayes on counts in nucleus and soma, other cells held out",
        ),
        Row(
            "R2 of ridge, genes to blurred PolyT, held-out half (own aim)",
            (0.4, 1.0),
            found["as measured"][1],
            words[1],
        ),
        Row(
            "R2 of ridge, genes to blurred DAPI, held-out half (own aim)", (0.2, 1.0), found["as measured"][0], words[0]
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sections and windows")
    parser.add_argument("--write", action="store_true", help="write docs/simulator.md's table and docs/img")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    brain = VirtualBrain(Settings.of("main", "brain", misregister=0.0))
    sections = (10, 30, 46) if options.quick else (3, 10, 17, 24, 31, 38, 43, 47)
    rows = rows_of_cells(brain, sections)
    rows += rows_of_images(brain, 6 if options.quick else 24)
    rows += rows_of_transcripts(brain, 12 if options.quick else 40)
    rows += rows_of_learning(options.quick)
    table = "\n".join(
        [
            "| statistic | stated | simulated | within 15 % | |",
            "|---|---|---|---|---|",
            *(row.markdown() for row in rows),
        ]
    )
    print(table)
    result = {"benchmark": "simulator_realism", "rows": len(rows), "within": int(sum(bool(row.within) for row in rows))}
    real = Path(os.environ.get("TERA_MIND_REAL_DATA", ""))
    if os.environ.get("TERA_MIND_REAL_DATA") and real.is_dir():
        from beside_real import compare

        lines, distances = compare(real, DOCS / "img" if options.write else None)
        print("\n".join(lines))
        result["frechet"] = distances
        table += "\n\n" + "\n".join(lines)
    if options.write:
        from beside_real import draw_sections

        draw_sections(DOCS / "img" / "simulator_sections.jpg")
        page = DOCS / "simulator.md"
        text = page.read_text()
        page.write_text(text[: text.index(START) + len(START)] + "\n" + table + "\n" + text[text.index(END) :])
    print(
        json.dumps(
            result | {"floor": BYTE_FLOOR, "camera": CAMERA_LEVEL, "seconds": round(time.monotonic() - begin, 1)}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
