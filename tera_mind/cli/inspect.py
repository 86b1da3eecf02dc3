"""`tera-mind inspect`: say what a file or folder of this project is and what it holds."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tera_mind.cli.progress import track
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain
from tera_mind.formats.manifest import Manifest
from tera_mind.formats.maps import Map
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box

if TYPE_CHECKING:  # drawing brings in matplotlib, which takes a second
    from tera_mind.survey.measure import Survey

_SHOWN = 8


@dataclass(frozen=True)
class Description:
    """What a path is (`kind`), a few lines for people, and everything as plain JSON."""

    path: Path
    kind: str
    lines: dict[str, str]
    record: dict[str, Any]

    def text(self) -> str:
        """The readable summary."""
        width = max(map(len, self.lines), default=0)
        return "\n".join([f"{self.path}: {self.kind}", *(f"  {key:<{width}}  {v}" for key, v in self.lines.items())])


def describe(path: Path) -> Description:
    """Describe a brain store, volume, map, shard folder or checkpoint.

    Raises `MissingFileError` when nothing is there and `FormatError` when it is none of these, or damaged.
    """
    if not path.exists():
        raise MissingFileError(f"nothing is at {path}; inspect a brain store, volume, map, shard folder or checkpoint")
    if path.is_file() and path.suffix == ".ckpt":
        return _checkpoint(path)
    if (path / "manifest.json").is_file():
        return _shards(path)
    if (path / "zarr.json").is_file():
        kind = _store_kind(path / "zarr.json")
        if kind == "brain":
            return _brain(path)
        if kind == "volume":
            return _volume(path)
        if kind == "map":
            return _map(path)
    raise FormatError(f"{path} is no brain store, volume, map, shard folder or checkpoint of tera-mind")


def _store_kind(path: Path) -> str | None:
    try:
        own = json.loads(path.read_text()).get("attributes", {}).get("tera_mind", {})
    except (OSError, ValueError, AttributeError) as error:
        raise FormatError(f"{path} is no zarr metadata ({error}); the store is damaged") from None
    kind = own.get("format") if isinstance(own, dict) else None
    return None if kind is None else str(kind)


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")


def _size(shape: Sequence[int], pixel_um: float) -> str:
    height, width = shape[-2:]
    return f"{height} x {width} px of {pixel_um:.4g} um ({height * pixel_um:.0f} x {width * pixel_um:.0f} um)"


def _brain(path: Path) -> Description:
    brain = Brain.open(path)
    total = sum(section.transcripts for section in brain.sections)
    tissue = [float(np.mean(brain.tissue(index))) for index in range(len(brain.sections))]
    area_um2 = np.array(tissue) * brain.canvas.height * brain.canvas.width * brain.pixel_um**2
    ranges = (f"{stain} {low:g}..{high:g}" for stain, (low, high) in brain.intensity_range.items())
    lines = {
        "canvas": _size(brain.shape, brain.pixel_um),
        "stains": _some(brain.stains),
        "raw range": ", ".join(ranges),
        "genes": f"{len(brain.genes)}: {', '.join(brain.genes[:_SHOWN])}{', ...' if len(brain.genes) > _SHOWN else ''}",
        "sections": f"{len(brain.sections)}, z {brain.sections[0].z_um:g}..{brain.sections[-1].z_um:g} um",
        "transcripts": f"{total:,} ({total / max(float(area_um2.sum()), 1e-9) * 100:.0f} per 100 um2 of tissue)",
        "fingerprint": brain.fingerprint,
    }
    for section, share in list(zip(brain.sections, tissue, strict=True))[:_SHOWN]:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in section.dropped.items()) or "none"
        lines[f"section {section.name}"] = (
            f"z {section.z_um:g} um, {section.transcripts:,} transcripts, tissue {share:.0%}, dropped: {dropped}"
        )
    record = dict(brain.attributes) | {"shape": list(brain.shape), "fingerprint": brain.fingerprint}
    return Description(path, f"brain store, version {brain.attributes['version']}", lines, record)


def _volume(path: Path) -> Description:
    volume = Volume.open(path)
    own = volume.attributes
    corner = volume.values(Box(own.box.y0, min(own.box.y0 + 1, own.box.y1), own.box.x0, own.box.x0 + 1))
    lines = {
        "image": f"{_size(volume.shape, own.pixel_um)}, {corner.dtype}",
        "stains": _some(own.stains),
        "sections": _some(own.sections),
        "of brain": f"{own.brain} ({own.brain_fingerprint}), box {own.box}",
        "genes": own.genes,
        "checkpoint": own.checkpoint,
        "sampler": f"seed {own.seed}, {own.steps} steps, patches of {own.patch_px} px",
    }
    return Description(path, "generated volume (synthetic), version 1", lines, own.to_json())


def _map(path: Path) -> Description:
    own = Map.open(path).attributes
    bounds = [own.bounds(channel) for channel in range(len(own.channels))]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    lines = {
        "shows": f"{own.name}{f' [{own.unit}]' if own.unit else ''}, {low:g}..{high:g}{', exact' if own.exact else ''}",
        "channels": _some(own.channels),
        "sections": _some(own.sections),
        "box": f"{own.box}, one number for {own.step_px} x {own.step_px} px of {own.pixel_um:.4g} um",
    }
    return Description(path, "map", lines, own.to_json())


def _shards(path: Path) -> Description:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise FormatError(f"{path / 'manifest.json'} cannot be read ({error}); write the shards again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != "shards":
        raise FormatError(f"{path / 'manifest.json'} is no manifest of tera-mind shards")
    return Description(path, f"training shards, version {manifest.get('version')}", _lines(manifest), manifest)


def _checkpoint(path: Path) -> Description:
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} is no checkpoint of plain data ({words}); is it damaged or incomplete?") from None
    if not isinstance(checkpoint, dict):
        raise FormatError(f"{path} is no checkpoint: expected a dictionary, got {type(checkpoint).__name__}")
    state = checkpoint.get("state_dict", {})
    weights = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    own = checkpoint.get("tera_mind")
    record: dict[str, Any] = {
        "format": "checkpoint",
        "tera_mind": own,
        "epoch": checkpoint.get("epoch"),
        "global_step": checkpoint.get("global_step"),
        "arrays": len(weights),
        "numbers": sum(value.numel() for value in weights.values()),
    }
    lines = {"state": f"{record['arrays']} arrays, {record['numbers']:,} numbers"}
    lines |= {key: str(record[key]) for key in ("epoch", "global_step") if record[key] is not None}
    lines |= _lines(own) if isinstance(own, dict) else {"tera_mind": "no metadata: not a checkpoint of this project"}
    return Description(path, "checkpoint", lines, record)


def _lines(record: Mapping[str, Any]) -> dict[str, str]:
    """One line a key: scalars as they are, lists by their first entries, tables by their keys."""
    lines = {}
    for key, value in record.items():
        if isinstance(value, dict):
            lines[key] = ", ".join(
                f"{name}={item}" if not isinstance(item, dict | list) else f"{name}({len(item)})"
                for name, item in value.items()
            )
        elif isinstance(value, list):
            plain = all(not isinstance(item, dict | list) for item in value)
            lines[key] = _some(value) if plain else f"{len(value)} entries"
        else:
            lines[key] = str(value)
    return lines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind inspect",
        description=(
            "Say what a brain store, generated volume, map, shard folder or checkpoint is and what it holds.\n\n"
            "A brain store is looked over whole: counts a gene and section, empty sections, saturated images, whether\n"
            "transcripts lie on the nuclei (cross-correlation), neighbouring sections on each other. What looks wrong\n"
            "is printed as a warning, and a figure shows all sections.\n\n"
            "With --verify a brain store or shard folder is read whole and compared with its checksums instead; the\n"
            "first damaged file ends it with an error."
        ),
        epilog=(
            "examples:\n"
            "  tera-mind inspect brain.zarr\n"
            "  tera-mind inspect brain.zarr --figure brain.pdf\n"
            "  tera-mind inspect brain.zarr --json | jq .survey.warnings\n"
            "  tera-mind inspect shards/ --verify"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="PATH")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE",
        help="figure of a brain store to write, .png, .pdf or .svg (default: NAME_inspect.png in the current folder)",
    )  # fmt: skip
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument(
        "--quick", action="store_true", help="only what the attributes say: read no data, draw no figure"
    )
    depth.add_argument(
        "--verify", action="store_true", help="compare the data of a brain store or shard folder with its checksums"
    )
    parser.add_argument("--json", action="store_true", help="print every fact as JSON instead of a summary")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print the summary of one path, or all its facts as JSON; look a brain store over and draw it, or verify it."""
    options = build_parser().parse_args(arguments)
    figure: Path | None = options.figure
    if figure is not None and figure.suffix.lower() not in {".png", ".pdf", ".svg"}:
        raise InputError(f"a figure ends in .png, .pdf or .svg, got {figure}")
    description = describe(options.path)
    plain = next((f"--{name}" for name in ("quick", "verify") if getattr(options, name)), None)
    kind = str(description.record.get("format"))
    looked_over = kind == "brain" and plain is None
    if figure is not None and not looked_over:
        raise InputError(f"--figure draws a brain store{f' without {plain}' if plain else f', {options.path} is none'}")
    if options.verify and kind not in {"brain", "shards"}:
        raise InputError(
            f"--verify needs the checksums of a brain store or shard folder, {options.path} has none: it is a "
            f"{description.kind}"
        )
    facts = {"path": str(description.path), "kind": description.kind} | description.record
    if not options.json:
        print(description.text())
    if looked_over:
        survey, figure = _look_over(options.path, figure)
        facts |= {"survey": survey.to_json(), "figure": str(figure)}
        if not options.json:
            _print_survey(survey)
            print(f"figure: {figure}")
    if options.verify:
        facts["verified"] = _verified(options.path, kind)
        if not options.json:
            print(f"verified: {facts['verified']}")
    if options.json:
        print(json.dumps(facts, indent=1, default=str))
    return 0


def _verified(path: Path, kind: str) -> str:
    """Read a brain store or shard folder whole and say what agrees with its checksums; `FormatError` at damage."""
    if kind == "brain":
        brain = Brain.open(path)
        brain.verify(lambda sections: track(sections, "verifying sections"))
        total = sum(section.transcripts for section in brain.sections)
        return f"{len(brain.sections)} sections, {total:,} transcripts and all images are as their SHA-256 say"
    manifest = Manifest.open(path)
    for one in track([manifest], "verifying shards"):
        one.verify()
    size = sum(split.bytes for split in manifest.splits.values())
    return f"{len(manifest.splits)} splits, {size:,} bytes of shards are as their SHA-256 say"


def _look_over(path: Path, figure: Path | None) -> tuple[Survey, Path]:
    from tera_mind.survey.figure import draw_survey
    from tera_mind.survey.measure import survey_brain

    brain = Brain.open(path)
    survey = survey_brain(brain, track)
    figure = figure or Path(f"{path.resolve().stem}_inspect.png")
    draw_survey(brain, survey, figure)
    return survey, figure


def _print_survey(survey: Survey) -> None:
    top = survey.top_genes(_SHOWN)
    totals = survey.gene_counts.sum(axis=0)
    print("  most seen: " + ", ".join(f"{survey.genes[gene]} {totals[gene]:,}" for gene in top))
    for section in survey.sections[:_SHOWN]:
        if section.alignment is not None:
            print(f"  section {section.name}: {section.alignment.words()}")
    if len(survey.sections) > _SHOWN:
        print(f"  ... and {len(survey.sections) - _SHOWN} more sections (--json has all)")
    for words in survey.warnings:
        print(f"warning: {words}", file=sys.stderr)
    if not survey.warnings:
        print("  nothing to warn of")
