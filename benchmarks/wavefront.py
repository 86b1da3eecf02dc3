"""The wavefront sampler: memory, plans, disk traffic, wall time against the published order of work, and the mask.

  memory  peak of a sweep over strips of growing width, each in a process of its own, beside the plan's prediction
  plan    25 groups of 1,144 x 1,656 patches on 1 to 256 workers
  disk    bytes a voxel, from formulas, and counted in the run of `time`
  time    the same region by the wavefront into shards, and by the published order with its state on disk after
          every step (`wavefront_rival`), in turns; both are checked to compute the same image
  mask    the shipped demo checkpoint at the edge of a small simulated brain: only tissue and everything, beside two
          seeds

Tables are Markdown, for docs/generation.md; the last line is JSON, "ratio" = wall time of published order / wavefront.

    python benchmarks/wavefront.py [--quick] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from wavefront_memory import measured
from wavefront_rival import TILE_PX, DiskSampler

import tera_mind
from tera_mind.formats.brain import Brain
from tera_mind.formats.ome import create_multiscale
from tera_mind.geometry import Box, section_groups
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.job import Generation, default_region
from tera_mind.sampling.plain import BoxNoise, CountSource, SamplerSettings, to_uint8
from tera_mind.sampling.plan import Planner
from tera_mind.sampling.wavefront import sweep
from tera_mind.sampling.writer import BandWriter, ShardWriter

WEIGHTS = Path(tera_mind.__file__).parent / "weights" / "simulated.ckpt"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: what both ways compute from
Parts = tuple[BlockNetwork, CountSource, BoxNoise, Domain, SamplerSettings]
#: the paper's main brain: section groups, patches down and across
GROUPS, ROWS, COLUMNS = 25, 1144, 1656
STEPS = 15
#: largest difference of the two ways in grey levels where both keep float32, and in share of pixels that differ at all
SAME_LEVELS, SAME_SHARE = 1, 1e-3
#: largest share of the patches that the mask may compute: where nothing is left out there is nothing to measure
MASK_SHARE = 2 / 3


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    sys.stdout.flush()


def memory(widths: Sequence[int], height: int) -> list[dict[str, Any]]:
    rows = [measured(width, height, STEPS) for width in widths]
    table(
        ("strip, px", "peak MB", "predicted MB", "peak / predicted"),
        [
            (
                f"{row['height']:,} x {row['width']:,}",
                f"{row['peak'] / 1e6:.1f}",
                f"{row['predicted'] / 1e6:.1f}",
                f"{row['peak'] / row['predicted']:.2f}",
            )
            for row in rows
        ],
    )
    return rows


def ellipse(region: Box, patch_px: int, group: int) -> Domain:
    """Tissue as a brain's sections have it: an ellipse, largest in the middle groups."""
    y, x = np.mgrid[-1 : 1 : region.height // patch_px * 1j, -1 : 1 : region.width // patch_px * 1j]
    radius = 0.55 + 0.35 * np.sin(np.pi * (group + 0.5) / GROUPS)
    return Domain(region, patch_px, (y**2 + x**2) < radius**2)


def plans(rows: int, columns: int, groups: int) -> list[dict[str, Any]]:
    region, patch_px = Box(0, rows * 64, 0, columns * 64), 64
    settings = SamplerSettings("epsilon", STEPS)
    sections = section_groups(2 * groups, 4)
    out = []
    domains = {
        "everything": [Domain.whole(region, patch_px)] * groups,
        "tissue": [ellipse(region, patch_px, group) for group in range(groups)],
    }
    for name, chosen in domains.items():
        planner = Planner(region, sections, chosen, settings, patch_px=64, halo_px=32, bin_px=16, channels=4, genes=500)
        for workers in WORKERS:
            plan = planner.plan(workers)
            balance, redundancy = plan.balance(workers), plan.redundancy
            out.append(
                {
                    "domain": name,
                    "workers": workers,
                    "units": len(plan.units),
                    "balance": balance,
                    "redundancy": redundancy,
                    "product": balance * (1 - redundancy),
                    "memory": plan.memory_bytes,
                    "written": plan.bytes_written,
                }
            )
    table(
        (
            "computed",
            "workers",
            "units",
            "balance",
            "redundancy",
            "balance x (1 - redundancy)",
            "GB a worker",
            "TB written",
        ),
        [
            (
                row["domain"],
                str(row["workers"]),
                str(row["units"]),
                *(f"{row[key]:.1%}" for key in ("balance", "redundancy", "product")),
                f"{row['memory'] / 1e9:.1f}",
                f"{row['written'] / 1e12:.2f}",
            )
            for row in out
        ],
    )
    return out


def simulated_brain(folder: Path, size: str) -> Brain:
    """A small virtual section in the demo's panel and pixels, on a canvas with background below it."""
    from tera_mind.cli.simulate import run

    given = ["--size", size, "--layout", "store", "--seed", "7", "--pixel-um", "0.85", "--workers", "1"]
    given += ["--sections", "1", "--height-um", "1200"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if run([*given, "--out", str(folder / "brain.zarr")]):
            raise SystemExit("the virtual brain could not be simulated")
    return Brain.open(folder / "brain.zarr")


def wavefront(job: Generation, parts: Parts, device: torch.device, folder: Path) -> tuple[np.ndarray, float]:
    """The image of the first group, through a volume's shards on disk; seconds spent with the disk.

    These are rounding, compressing, hashing, writing, syncing and reading back; genes are read by both ways alike.
    """
    region, model = job.region, job.checkpoint.info.model
    shape = (model.stains, model.sections, region.height, region.width)
    begun = time.perf_counter()
    level = create_multiscale(folder / "volume", shape, name="x", stains=job.checkpoint.info.stains, pixel_um=1.0)
    shards = ShardWriter(folder / "volume", folder / "staging", "uint8")
    own = Box(0, region.height, 0, region.width)
    side = level.shards or level.chunks
    writer = BandWriter(shards, own, model.stains, tuple(range(model.sections)), (own.height, side[3]))
    io_s = time.perf_counter() - begun
    for box, piece in sweep(*parts, device=device):
        begun = time.perf_counter()
        writer.add(box.shift(-region.y0, -region.x0), piece)
        io_s += time.perf_counter() - begun
    begun = time.perf_counter()
    writer.finish()
    shards.seal()
    shards.close()
    image = np.asarray(level[:]).reshape(-1, region.height, region.width)
    return image, io_s + time.perf_counter() - begun


def against_published(
    brain: Brain, size: tuple[int, int], steps: int, turns: int, device: torch.device
) -> dict[str, Any]:
    checkpoint = load_checkpoint(WEIGHTS)
    patch_px = checkpoint.info.model.patch_px
    y, x = (brain.canvas.height - size[0]) // 2, (brain.canvas.width - size[1]) // 2
    wanted = Box(y, y + size[0], x, x + size[1])
    blocks = TILE_PX // patch_px
    job = Generation(
        checkpoint, brain, default_region(brain, patch_px, wanted), (0,), steps=steps,
        masked=False, block_rows=blocks, block_columns=blocks,
    )  # fmt: skip
    group = job.groups[0]
    parts = (job.network(device), job.counts(group), job.noise(group), job.domain(group), job.settings)

    def ours() -> tuple[np.ndarray, float]:
        with tempfile.TemporaryDirectory() as folder:
            return wavefront(job, parts, device, Path(folder))

    def published(dtype: str) -> tuple[np.ndarray, DiskSampler]:
        with tempfile.TemporaryDirectory() as folder:
            sampler = DiskSampler(*parts, Path(folder) / "states", dtype)
            return sampler.run(), sampler

    apart = np.abs(ours()[0].astype(int) - published("float32")[0])
    if apart.max() > SAME_LEVELS or (apart > 0).mean() > SAME_SHARE:
        raise SystemExit(f"the two ways differ by up to {apart.max()} grey levels: nothing to compare")
    times = []
    for _ in range(turns):
        begun = time.perf_counter()
        image, our_io = ours()
        middle_s = time.perf_counter()
        half, sampler = published("float16")
        times.append((middle_s - begun, time.perf_counter() - middle_s, our_io, sampler.io_s))
    ratios = sorted(b / a for a, b, _, _ in times)
    voxels = image.size
    row = {
        "pixels": [job.region.height, job.region.width],
        "wavefront_s": statistics.median(t[0] for t in times),
        "published_s": statistics.median(t[1] for t in times),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "turns": turns,
        "wavefront_disk_share": statistics.median(t[2] / t[0] for t in times),
        "published_disk_share": statistics.median(t[3] / t[1] for t in times),
        "published_written_a_voxel": sampler.written / voxels,
        "published_read_a_voxel": sampler.read / voxels,
        "float16_states_change": float((half != image).mean()),
    }
    table(
        ("", "wall time", "of it with the disk", "written a voxel", "read a voxel"),
        [
            ("wavefront", f"{row['wavefront_s']:.2f} s", f"{row['wavefront_disk_share']:.1%}", "1 B", "0"),
            (
                "state on disk after every step",
                f"{row['published_s']:.2f} s",
                f"{row['published_disk_share']:.1%}",
                f"{row['published_written_a_voxel']:.1f} B",
                f"{row['published_read_a_voxel']:.1f} B",
            ),
        ],
    )
    print(f"\nratio {row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f}, {turns} turns)")
    return row


def disk(steps: int, rim_px: int) -> None:
    """Bytes a voxel of the image, before compression, for a brain much larger than a tile."""
    touched = (1 + 2 * rim_px / TILE_PX) ** 2
    table(
        ("", "written", "read", f"of {steps} steps"),
        [
            ("published", "2 S", "2 (S - 1) 9", f"{2 * steps} B and {2 * (steps - 1) * 9} B"),
            (
                "... if parts of a chunk could be read",
                "2 S",
                f"2 (S - 1) {touched:.2f}",
                f"{2 * (steps - 1) * touched:.0f} B read",
            ),
            ("wavefront, level 0", "1", "0", "1 B and 0 B"),
            ("wavefront, with its pyramid", "4/3", "4/3", "1.3 B and 1.3 B"),
        ],
    )


def mask(brain: Brain, steps: int, device: torch.device, region: str) -> dict[str, Any]:
    """How far leaving out what is not tissue changes tissue, beside another seed; grey levels."""
    checkpoint = load_checkpoint(WEIGHTS)
    patch_px = checkpoint.info.model.patch_px
    box = default_region(brain, patch_px, Box.parse(region, brain.canvas))
    job = Generation(checkpoint, brain, box, (0,), steps=steps, masked=True)

    domain = job.domain(job.groups[0])
    if domain.share > MASK_SHARE:
        raise SystemExit(f"{domain.share:.0%} of the patches of {region} are computed: choose more background")

    def image(of: Generation) -> np.ndarray:
        out = np.zeros((checkpoint.info.model.image_channels, box.height, box.width), np.float32)
        group = of.groups[0]
        parts = (of.counts(group), of.noise(group), of.domain(group), of.settings)
        for place, piece in sweep(of.network(device), *parts, device=device):
            out[(..., *place.shift(-box.y0, -box.x0).slices())] = to_uint8(piece).numpy()
        return out

    masked, whole = image(job), image(dataclasses.replace(job, masked=False))
    seed = image(dataclasses.replace(job, masked=False, seed=1))
    cells = brain.tissue(0).repeat(64, 0).repeat(64, 1)[: brain.canvas.height, : brain.canvas.width]
    tissue = cells[box.slices()]
    rows = []
    for name, where in (
        ("all tissue", tissue),
        ("its outermost 64 px", tissue & ~_inner(tissue, 64)),
        ("deeper", _inner(tissue, 64)),
    ):
        by_mask, by_seed = (np.abs(a - whole)[:, where] for a in (masked, seed))
        rows.append((name, by_mask, by_seed))
    table(
        (
            "grey levels, mean and 99.9 %",
            "tissue only against everything",
            "one seed against another",
            "ratio of means",
        ),
        [
            (
                name,
                f"{a.mean():.4f}, {np.quantile(a, 0.999):.1f}",
                f"{b.mean():.2f}, {np.quantile(b, 0.999):.1f}",
                f"{a.mean() / max(b.mean(), 1e-9):.4f}",
            )
            for name, a, b in rows
            if a.size
        ],
    )
    print(f"\n{domain.share:.0%} of the patches are computed, {tissue.mean():.0%} of the pixels are tissue")
    return {"share": domain.share, "mask": float(rows[0][1].mean()), "seed": float(rows[0][2].mean())}


def _inner(tissue: np.ndarray, px: int) -> np.ndarray:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(tissue) > px)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="Memory, plans, disk traffic, wall time and mask of the wavefront sampler.",
        epilog="example: python benchmarks/wavefront.py --quick",
    )
    made.add_argument("--quick", action="store_true", help="smaller regions, fewer turns: under 3 minutes")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    tiny, quick = options.tiny, options.quick
    software = {"python": platform.python_version(), "torch": torch.__version__}
    print(f"device {device_name(device)}; torch {torch.__version__}, Python {platform.python_version()}")
    print("\n## Memory")
    strips = memory(
        (1024, 2048) if tiny else (4096, 8192) if quick else (8192, 16384, 32768, 65536), 256 if tiny else 1024
    )
    print("\n## Plan")
    planned = plans(64, 96, 3) if tiny else plans(ROWS, COLUMNS, GROUPS)
    print("\n## Disk: bytes a voxel")
    disk(STEPS, 32)
    with tempfile.TemporaryDirectory() as folder:
        brain = simulated_brain(Path(folder), "tiny")
        print("\n## Time")
        size, steps = ((256, 256), 1) if tiny else ((256, 512), 3) if quick else ((768, 1280), STEPS)
        timed = against_published(brain, size, steps, 1 if tiny else 3, device)
        print("\n## Mask")
        where = "896:1088,:192" if tiny else "832:1152,:640" if quick else "640:,:"
        masked = mask(brain, 2 if tiny else 3 if quick else STEPS, device, where)
    result = {
        "benchmark": "wavefront", "ratio": timed["ratio"], "memory": strips, "plan": planned, "time": timed,
        "mask": masked, "device": device_name(device), "threads": torch.get_num_threads(), "software": software,
    }  # fmt: skip
    print()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
