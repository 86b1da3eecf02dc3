"""What asking a network costs beside generating with it, and what its attention knows of anatomy that genes do not.

`cost`: attention maps of a region, read from a brain store to finished numbers, against generation of the same region
with the fast forward of the same network in 15 steps, whose counts lie in memory already. In turns, in one run.

`intervention`: a factual and an edited volume through the real way to the disk, populations measured, against one
volume of the same region; for an edit of genes and for one of second moments. In turns, in one run.

`areas`: on simulated brains, the area under the ROC curve of a network's attention (the shipped demo network's, or that
of `--checkpoint`), of each gene, of their sum and of their product, against the simulator's own regions and cells; 95 %
intervals from resampled squares.

    python benchmarks/analysis.py [--quick] [--device cpu|cuda] [--part cost intervention areas]
    python benchmarks/analysis.py --part areas --checkpoint run/last.ckpt --brain brain.zarr
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import tera_mind
from tera_mind.analysis import readout
from tera_mind.analysis.attention import AttentionJob
from tera_mind.analysis.interventions.edits import Edit, Match, Scale
from tera_mind.analysis.interventions.intervention import Intervention, Part
from tera_mind.analysis.interventions.masks import Mask
from tera_mind.analysis.interventions.population import measure
from tera_mind.analysis.partners import PartnerSettings
from tera_mind.analysis.pathways import read_pathways
from tera_mind.analysis.roc import Area, auroc_interval
from tera_mind.cli.simulate import run as simulate
from tera_mind.formats.attention_map import ATTENTION, PRODUCT, UNWEIGHTED
from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.regions import RegionMap
from tera_mind.model.checkpoint import Checkpoint, CheckpointInfo, checkpoint_content, load_checkpoint
from tera_mind.model.config import ModelConfig
from tera_mind.model.fast import fast_network
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.job import Generation
from tera_mind.sampling.launch import Launch, generate
from tera_mind.sampling.plain import SamplerSettings, sample_steps
from tera_mind.simulate.store import truth_folder

#: most that attention maps may cost, as a share of generation
TARGET = 0.02
#: most that an intervention may cost, in generations
INTERVENTION_TARGET = 2.1
STEPS = 15
#: networks of the cost part: the tests' own, one for two CPU cores, the published one; patches a side of its region
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (
        {"genes": 12, "gene_sections": 4, "patch_px": 16, "bin_px": 4, "base_channels": 8, "channel_mult": (1, 2),
         "res_blocks": 1, "time_channels": 16, "pyramid_channels": (8,), "attention_px": 8}, 2,
    ),
    "small": (
        {"genes": 229, "gene_sections": 4, "patch_px": 32, "bin_px": 8, "base_channels": 32,
         "channel_mult": (1, 2, 4, 4), "res_blocks": 1, "time_channels": 128, "pyramid_channels": (64, 32, 16)}, 3,
    ),
    "published": ({"genes": 229, "gene_sections": 4}, 2),
}  # fmt: skip
PIXEL_UM, TRANSCRIPTS_UM2 = 0.108, 0.6
DEMO = Path(tera_mind.__file__).parent / "weights" / "simulated.ckpt"
#: gene sets whose place in the simulator is known: regions by name, or patches that hold cells of all these types
GLUTAMATERGIC = ("layer 2/3", "layer 4", "layer 5", "layer 6", "CA", "dentate gyrus", "thalamus", "CB granule")
PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "GLUT": (read_pathways()["GLUT"], GLUTAMATERGIC, ()),
    "DOPA": (read_pathways()["DOPA"], ("SN/VTA",), ()),
    "BLOD": (read_pathways()["BLOD"], (), ("Endothelial", "Astrocyte")),
    "myelin": (("Mog", "Sox10", "St18"), ("fibre tract",), ()),
}
PARTS = ("cost", "intervention", "areas")
#: side in patches of the squares that are resampled as one
CELL_PATCHES = 4


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def random_brain(folder: Path, config: ModelConfig, genes: Sequence[str], side: int) -> Brain:
    """A store of `side` x `side` patches with random transcripts of a brain's density, 4 sections."""
    random = np.random.default_rng(0)
    size = side * config.patch_px
    count = max(200, round((size * PIXEL_UM) ** 2 * TRANSCRIPTS_UM2))
    rows = [
        Transcripts(
            *(random.integers(0, high, count).astype(np.int32) for high in (size, size, config.genes)),
            np.ones(count, np.int32),
        )
        for _ in range(4)
    ]
    image = np.zeros((config.stains, 4, size, size), np.uint8)
    return create_brain(
        folder / "brain.zarr", image=image, transcripts=rows, genes=genes, stains=("DAPI", "PolyT"), pixel_um=PIXEL_UM
    )


def cost(shape: str, device: torch.device, turns: int, folder: Path) -> dict[str, Any]:
    """Seconds of generation and of three kinds of read-out of the same region, in turns."""
    sizes, side = SHAPES[shape]
    config = ModelConfig(**sizes, dropout=0.0)
    torch.manual_seed(0)
    network = GeneMorphUNet(config).to(device).eval()
    genes = tuple(f"g{k}" for k in range(config.genes))
    info = CheckpointInfo(config, "epsilon", genes, ("DAPI", "PolyT"), PIXEL_UM, {})
    checkpoint = Checkpoint(info, network, "none", folder)
    brain = random_brain(folder, config, genes, side)
    kinds = {"maps": {}, "maps, pairwise": {"pairwise": True}, "maps, partners": {"partners": PartnerSettings("g0")}}
    jobs = {name: AttentionJob.of(checkpoint, brain, ("g0", "g1"), sections=(0, 1), **k) for name, k in kinds.items()}
    check_rows(jobs["maps"], network)
    region = jobs["maps"].region
    bins = torch.zeros(config.genes, config.gene_sections, *(2 * (3 * side * config.bins,)))

    def counts(box: Box) -> torch.Tensor:
        return bins[:, :, : box.height // config.bin_px, : box.width // config.bin_px]

    fast = fast_network(network, device)

    def generate() -> None:
        start = torch.randn(config.image_channels, region.height, region.width, device=device)
        domain, settings = Domain.whole(region, config.patch_px), SamplerSettings("epsilon", STEPS)
        for _ in sample_steps(fast, counts, lambda _step, _box: start, domain, settings):
            pass

    def read(job: AttentionJob) -> None:
        for unit in job.units:
            job(unit)

    read(jobs["maps"])  # warms up what both share
    taken: dict[str, list[float]] = {name: [] for name in ("generation", *jobs)}
    for _ in range(turns):
        taken["generation"].append(seconds(generate, device))
        for name, job in jobs.items():
            taken[name].append(seconds(lambda job=job: read(job), device))  # type: ignore[misc]
    return {
        "network": shape, "patches": side * side, "turns": turns, "steps": STEPS,
        "generation_ms": 1e3 * statistics.median(taken["generation"]), "rows": shares_of(taken),
    }  # fmt: skip


def intervention(shape: str, device: torch.device, turns: int, folder: Path) -> dict[str, Any]:
    """Seconds of one volume and of the two of an intervention, beginning with its populations, in turns."""
    sizes, side = SHAPES[shape]
    config = ModelConfig(**sizes, dropout=0.0)
    torch.manual_seed(0)
    genes = tuple(f"g{k}" for k in range(config.genes))
    info = CheckpointInfo(config, "epsilon", genes, ("DAPI", "PolyT"), PIXEL_UM, {})
    torch.save(checkpoint_content(info, GeneMorphUNet(config)), folder / "net.ckpt")
    brain, checkpoint = random_brain(folder, config, genes, side), load_checkpoint(folder / "net.ckpt")
    job = Generation(checkpoint, brain, brain.canvas, (0, 1), steps=STEPS, block_rows=side, block_columns=side)
    launch = Launch((device,))

    def volume(own: Generation) -> Volume:
        made = generate(own, folder / "volume.zarr", launch)
        assert made is not None
        shutil.rmtree(folder / "before.zarr", ignore_errors=True)
        return Volume.open((folder / "volume.zarr").replace(folder / "before.zarr"))

    def edited(kind: str) -> Generation:
        edit: Edit = Scale(genes[:2], 0.2)
        if kind == "second moments":
            own = measure("own", brain, config.patch_px)
            edit = Match(
                own,
                1,
                target=measure(
                    "left", brain, config.patch_px, mask=Mask(Box(0, brain.shape[2], 0, brain.shape[3] // 2))
                ),
            )
        made = Intervention(kind, (Part(edit),), genes, config.patch_px, config.bin_px, PIXEL_UM)
        return replace(job, edit=made)

    images: dict[str, NDArray[np.uint8]] = {}

    def both(kind: str) -> None:
        volume(job)
        images[kind] = volume(edited(kind)).image()

    factual = volume(job).image()  # warms up as well
    taken: dict[str, list[float]] = {name: [] for name in ("generation", "genes", "second moments")}
    for _ in range(turns):
        taken["generation"].append(seconds(lambda: volume(job), device))
        for kind in ("genes", "second moments"):
            taken[kind].append(seconds(lambda kind=kind: both(kind), device))  # type: ignore[misc]
            if np.array_equal(images[kind], factual):
                raise SystemExit(f"an edit of {kind} left the volume as it was")
    return {"network": shape, "patches": side * side, "turns": turns, "steps": STEPS, "rows": shares_of(taken)}


def shares_of(taken: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Milliseconds and share of generation of every other thing, with the spread over the turns."""
    rows = []
    for name in (name for name in taken if name != "generation"):
        shares = [own / whole for own, whole in zip(taken[name], taken["generation"], strict=True)]
        rows.append(
            {"what": name, "ms": 1e3 * statistics.median(taken[name]), "ratio": statistics.median(shares),
             "ratio_min": min(shares), "ratio_max": max(shares)}
        )  # fmt: skip
    return rows


def check_rows(job: AttentionJob, network: GeneMorphUNet) -> None:
    """The rows that are read are those of the network's own matrix."""
    counts = torch.poisson(torch.ones(3, len(job.panel), job.gene_sections, *(2 * (job.patch_px // job.bin_px,))))
    counts = counts.to(next(network.parameters()).device)
    which = job.set_index.to(counts.device)
    with torch.no_grad():
        whole = network.pyramid.attention(counts)[:, 0][:, which][:, :, which]
        apart = (readout.set_attention(readout.queries(network.pyramid, counts), which) - whole).abs().max().item()
    if not apart < 1e-5:
        raise SystemExit(f"the rows read differ from the network's attention by {apart:.2g}, expected less than 1e-5")


def positives(brain: Brain, truth: Path, job: AttentionJob, place: str, section: int) -> NDArray[np.bool_]:
    """Patches of a section, (row, column), where the simulator has what a set of genes stands for."""
    _, regions, types = PLACES[place]
    rows, columns = job.grid
    if regions:
        labels = RegionMap.open(truth, brain)
        wanted = [label for label, name in labels.names.items() if name in regions]
        boxes = [[section, b.y0, b.y1, b.x0, b.x1] for b in job.region.tiles(job.patch_px, job.patch_px)]
        return np.isin(labels.at(np.array(boxes, np.int64)), wanted).reshape(rows, columns)
    cells = pd.read_parquet(truth / f"section_{section:03d}" / "cells.parquet")
    found = np.ones((rows, columns), bool)
    size_um = job.patch_px * brain.pixel_um
    for kind in types:
        own = cells[cells["type"] == kind]
        place_of = [(own[axis] / size_um).astype(int) for axis in ("y_um", "x_um")]
        inside = (place_of[0] < rows) & (place_of[1] < columns)
        there = np.zeros((rows, columns), bool)
        there[place_of[0][inside], place_of[1][inside]] = True
        found &= there
    return found


def areas(brain: Brain, truth: Path, checkpoint: Checkpoint, resamples: int) -> list[dict[str, Any]]:
    """A row a gene set and read-out; sets that the network's panel lacks have a reason instead."""
    rows: list[dict[str, Any]] = []
    for place, (genes, _, _) in PLACES.items():
        missing = [gene for gene in genes if gene not in checkpoint.info.genes]
        if missing:
            rows.append({"set": place, "reason": f"the network's panel lacks {', '.join(missing)}"})
            continue
        job = AttentionJob.of(checkpoint, brain, genes)
        planes = np.concatenate([job(unit)["planes"] for unit in job.units], axis=2)
        if job.gene_sections > 1 or len(job.units) != len(brain.sections) * len({u.first for u in job.units}):
            raise SystemExit("expected a network that sees one section at a time, as that of the demo")
        per_section = np.split(planes, len(brain.sections), axis=2)
        values = np.concatenate(per_section, axis=1)  # (channel, section, row, column)
        positive = np.stack([positives(brain, truth, job, place, z) for z in range(len(brain.sections))])
        y, x = np.indices(job.grid) // CELL_PATCHES
        squares = y * 10_000 + x + 100_000_000 * np.arange(len(brain.sections))[:, None, None]
        scores = {name: values[job.channels.index(name)] for name in (ATTENTION, UNWEIGHTED, *genes)}
        scores["sum of expression"] = np.sum([scores[gene] for gene in genes], axis=0)
        scores[PRODUCT] = values[job.channels.index(PRODUCT)]
        for name, level in scores.items():
            found = auroc_interval(
                level.ravel().astype(np.float64), positive.ravel(), squares.ravel().astype(np.int64), resamples, 0
            )
            rows.append({"set": place, "score": name, **found._asdict()})
    return rows


def simulated(folder: Path, brain: str, sections: int, seed: int, genes: int) -> tuple[Brain, Path]:
    out = folder / f"{brain}.zarr"
    asked = ["--out", out, "--brain", brain, "--size", "tiny", "--layout", "store", "--sections", sections]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        simulate([str(word) for word in [*asked, "--seed", seed, "--genes", genes, "--workers", 1]])
    return Brain.open(out), out.with_name(f"{brain}.truth")


def print_cost(found: dict[str, Any]) -> None:
    print(f"\ncost: network {found['network']}, {found['patches']} patches, one section group, {found['turns']} turns")
    print(f"generation in {STEPS} steps: {found['generation_ms']:.1f} ms; read-outs beside it, at most {TARGET:.0%}:")
    for row in found["rows"]:
        print(
            f"  {row['what']:<16}{row['ms']:>9.2f} ms {row['ratio']:>9.3%} of generation "
            f"({row['ratio_min']:.3%} to {row['ratio_max']:.3%})"
        )


def print_intervention(found: dict[str, Any]) -> None:
    print(
        f"\nintervention: network {found['network']}, {found['patches']} patches, {found['turns']} turns, {STEPS} steps"
    )
    print(f"factual and edited volume on the disk, in generations, at most {INTERVENTION_TARGET:g}:")
    for row in found["rows"]:
        print(f"  {row['what']:<16}{row['ratio']:>7.3f} ({row['ratio_min']:.3f} to {row['ratio_max']:.3f})")


def print_areas(brain: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\nareas under the ROC curve on simulated brain {brain!r} (95 % intervals)")
    for place in PLACES:
        own = [row for row in rows if row["set"] == place]
        if "reason" in own[0]:
            print(f"  {place:<8} {own[0]['reason']}")
            continue
        known = [row for row in own if row["value"] is not None]
        best = max(known, key=lambda row: row["value"], default=None)
        print(f"  {place:<8} {own[0]['positives']} of {own[0]['positives'] + own[0]['negatives']} patches")
        for row in own:
            area = Area(*(row[key] for key in Area._fields))
            words = "unknown" if area.value is None else f"{area.value:.3f}"
            between = "" if area.low is None else f" ({area.low:.3f} to {area.high:.3f})"
            print(f"           {row['score']:<24}{words}{between}{'  <- best' if row is best else ''}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="What reading attention costs beside generation, and what it knows of anatomy.",
        epilog="example: python benchmarks/analysis.py --quick",
    )
    made.add_argument("--quick", action="store_true", help="a smaller network and one small brain: under 3 minutes")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    made.add_argument(
        "--checkpoint", type=Path, default=DEMO, help="whose attention `areas` reads (default: the demo's)"
    )
    made.add_argument("--brain", type=Path, help="simulated brain store with its truth beside it, for `areas`")
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    software = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    print(f"device {name}, {torch.get_num_threads()} threads; torch {torch.__version__}, numpy {np.__version__}")
    result: dict[str, Any] = {"benchmark": "analysis", "ratio": None, "target": TARGET}
    with tempfile.TemporaryDirectory(prefix="tera-mind-analysis-") as held:
        if "cost" in options.part:
            shape = "tiny" if options.tiny else "small" if options.quick and device.type == "cpu" else "published"
            result["cost"] = cost(shape, device, 2 if options.tiny or options.quick else 5, Path(held))
            result["ratio"] = result["cost"]["rows"][0]["ratio"]
            print_cost(result["cost"])
        if "intervention" in options.part:
            shape = "tiny" if options.tiny else "small" if options.quick and device.type == "cpu" else "published"
            folder = Path(held) / "intervention"
            folder.mkdir()
            result["intervention"] = intervention(shape, device, 2 if options.tiny or options.quick else 3, folder)
            result["intervention"]["target"] = INTERVENTION_TARGET
            print_intervention(result["intervention"])
        if "areas" in options.part:
            checkpoint, resamples = load_checkpoint(options.checkpoint), 50 if options.tiny else 1000
            result["areas"] = {}
            kinds = ("main",) if options.quick or options.tiny else ("main", "supp_m")
            sections = 1 if options.tiny else 2 if options.quick else 6
            for kind in kinds if options.brain is None else (options.brain.stem,):
                if options.brain is None:
                    brain, truth = simulated(Path(held), kind, sections, 11, len(checkpoint.info.genes))
                else:
                    brain, truth = Brain.open(options.brain), truth_folder(options.brain)
                result["areas"][kind] = areas(brain, truth, checkpoint, resamples)
                print_areas(kind, result["areas"][kind])
    result |= {"device": name, "threads": torch.get_num_threads(), "software": software}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
