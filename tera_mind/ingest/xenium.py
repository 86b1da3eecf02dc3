"""10x Genomics Xenium: `experiment.xenium`, `transcripts.parquet`, one or more morphology images. Partial bundles too.

Images by version: `morphology_mip.ome.tif` or `morphology_focus.ome.tif` (before 2.0), and a folder
`morphology_focus` with one file a channel since (`morphology_focus_0000.ome.tif`, `ch0000_dapi.ome.tif`).
Positions are microns from the image's corner, so a pixel is position / pixel_size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch, pick_stains
from tera_mind.ingest.tiff import TiffPlane

BATCH_ROWS = 2**18
_COLUMNS = ("feature_name", "x_location", "y_location", "qv")
_CHANNELS = ("DAPI", "boundary", "18S", "interior")
_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "mm": 1e3, "nm": 1e-3}


@dataclass(frozen=True)
class XeniumReader:
    """One section a folder. `min_qv`: transcripts of lower quality are dropped; `stains`: channels to take, or all."""

    min_qv: float = 20.0
    stains: tuple[str, ...] = ()

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The section of a folder. Raises `MissingFileError`, `FormatError` or `InputError`, one line each."""
        experiment = _experiment(folder)
        pixel_um = check_pixel_um(float(experiment["pixel_size"]), folder / "experiment.xenium")
        um_to_px = np.diag([1 / pixel_um, 1 / pixel_um, 1.0])
        channels = _channels(folder, experiment, pixel_um)
        names = pick_stains(list(channels), self.stains, folder)
        transcripts = _parquet(folder / "transcripts.parquet")
        with pq.ParquetFile(transcripts) as file:
            rows = file.metadata.num_rows
        return [
            SectionSource(
                name=folder.resolve().name,
                z_um=z_um,
                stains=tuple(StainImage(name, TiffPlane(channels[name]), um_to_px) for name in names),
                batches=lambda: self._batches(transcripts),
                panel=_panel(folder / "gene_panel.json"),
                expected_batches=math.ceil(rows / BATCH_ROWS),
                provenance={
                    "format": "xenium",
                    "folder": folder.resolve().name,
                    "run": str(experiment.get("run_name", "")),
                    "software": str(experiment.get("analysis_sw_version", "")),
                    "images": {name: channels[name].name for name in names},
                    "pixel_um": pixel_um,
                    "min_qv": self.min_qv,
                },
            )
        ]

    def _batches(self, path: Path) -> Iterator[TranscriptBatch]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(_COLUMNS)):
                    yield self._batch(batch)
        except (OSError, pa.ArrowException) as error:
            raise FormatError(f"{path} is damaged ({error}); copy it again") from None

    def _batch(self, batch: Any) -> TranscriptBatch:
        codes, names = encode_names(batch.column("feature_name"))
        x_um, y_um, quality = (
            np.asarray(batch.column(name).to_numpy(zero_copy_only=False), np.float64) for name in _COLUMNS[1:]
        )
        reasons = [no_gene_reason(name) for name in names]
        kept = np.isfinite(x_um) & np.isfinite(y_um)
        dropped = {"no position": int((~kept).sum())}
        for reason in sorted({reason for reason in reasons if reason}):
            matches = kept & np.array([other == reason for other in reasons])[codes]
            dropped[reason] = int(matches.sum())
            kept &= ~matches
        good = quality >= self.min_qv  # false for a missing quality
        dropped[f"qv below {self.min_qv:g}"] = int((kept & ~good).sum())
        kept &= good
        return TranscriptBatch(x_um[kept], y_um[kept], codes[kept], names, dropped)


def _experiment(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MissingFileError(f"expected a Xenium output folder at {folder}, nothing is there")
    path = folder / "experiment.xenium"
    if not path.is_file():
        raise MissingFileError(f"expected experiment.xenium in {folder}: is this a Xenium output folder?")
    try:
        experiment = json.loads(path.read_text())
        float(experiment["pixel_size"])
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path} cannot be read ({error}); expected JSON with a number 'pixel_size'") from None
    except KeyError:
        raise InputError(f"{path} has no 'pixel_size', so the units of the image are unknown; add it in um") from None
    return dict(experiment)


def _parquet(path: Path) -> Path:
    if not path.is_file():
        raise MissingFileError(f"expected transcripts.parquet in {path.parent}; a partial bundle needs it too")
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path} is no readable Parquet file ({error}); copy it again") from None
    missing = [column for column in _COLUMNS if column not in names]
    if missing:
        raise FormatError(f"{path} lacks columns {', '.join(missing)}; it has {', '.join(names)}")
    return path


def _channels(folder: Path, experiment: dict[str, Any], pixel_um: float) -> dict[str, Path]:
    """Channel name -> file, checked against the pixel size of the experiment."""
    channels: dict[str, Path] = {}
    for index, path in enumerate(_image_files(folder, experiment)):
        name = _describe(path, index, pixel_um)
        if name in channels:
            raise InputError(f"{path} and {channels[name]} are both channel {name!r}; leave one out of the folder")
        channels[name] = path
    return channels


def _image_files(folder: Path, experiment: dict[str, Any]) -> list[Path]:
    listed = experiment.get("images", {})
    named = [listed.get(f"morphology_{kind}_filepath") for kind in ("mip", "focus")]
    known = ["morphology_mip.ome.tif", "morphology_focus.ome.tif"]
    several = sorted((folder / "morphology_focus").glob("*.ome.tif"))
    if several:
        return several
    for candidate in [*filter(None, named), *known]:
        if (folder / candidate).is_file():
            return [folder / candidate]
    raise MissingFileError(
        f"expected a morphology image in {folder} (morphology_mip.ome.tif, morphology_focus.ome.tif or "
        "morphology_focus/*.ome.tif), found none"
    )


def _describe(path: Path, index: int, pixel_um: float) -> str:
    """Name of the channel in a file; refuses OME metadata whose unit is unknown or that contradicts the experiment."""
    try:
        with tifffile.TiffFile(path) as tif:
            metadata = tifffile.xml2dict(tif.ome_metadata) if tif.ome_metadata else {}
    except (tifffile.TiffFileError, OSError, ValueError) as error:
        raise FormatError(f"image {path} cannot be read as TIFF ({error}); is it damaged or incomplete?") from None
    image = metadata.get("OME", {}).get("Image", {})
    pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
    if "PhysicalSizeX" in pixels:
        unit = str(pixels.get("PhysicalSizeXUnit", "µm"))
        if unit not in _MICRONS:
            raise InputError(
                f"{path} gives its pixel size in unknown unit {unit!r}, expected one of {', '.join(_MICRONS)}"
            )
        size = float(pixels["PhysicalSizeX"]) * _MICRONS[unit]
        if abs(size / pixel_um - 1) > 0.01:
            raise InputError(
                f"{path} has pixels of {size:g} um, experiment.xenium says {pixel_um:g}: correct one of them"
            )
    channels = pixels.get("Channel", [])
    names = [str(c["Name"]) for c in (channels if isinstance(channels, list) else [channels]) if c.get("Name")]
    if len(names) == 1:
        return names[0]
    if len(names) > index:
        return names[index]
    stem = re.fullmatch(r"ch\d+_(.+)\.ome\.tif", path.name)
    if stem:
        return "DAPI" if stem[1].lower() == "dapi" else stem[1]
    return _CHANNELS[index] if index < len(_CHANNELS) else f"channel{index}"


def _panel(path: Path) -> tuple[str, ...] | None:
    """Genes that the bundle's panel file declares, None without one."""
    if not path.is_file():
        return None
    try:
        targets = json.loads(path.read_text())["payload"]["targets"]
        names = {t["type"]["data"]["name"] for t in targets if t["type"].get("descriptor") == "gene"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is no Xenium gene panel ({error!r}); repair it or take it out of the folder"
        ) from None
    return tuple(sorted(name for name in names if no_gene_reason(name) is None)) or None
