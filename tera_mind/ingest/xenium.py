"""10x Genomics Xenium, software 1 to 4: `experiment.xenium`, `transcripts.parquet`, morphology images. Partial too.

Transcripts: `transcripts.parquet`, or `transcripts.csv.gz` in a bundle without it; names are bytes in old ones, and
`is_gene` or `codeword_category` (since 3.0) say what is a gene. Images by version: `morphology_mip.ome.tif` or
`morphology_focus.ome.tif` (before 2.0), a multi-file OME-TIFF `morphology_focus/morphology_focus_000N.ome.tif` (2, 3)
or `morphology_focus/ch000N_NAME.ome.tif` (4), and the z stack `morphology.ome.tif`, projected where nothing else is
there. Positions are microns from the image's corner, so a pixel is position / pixel_size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from tera_mind.errors import InputError, MissingFileError
from tera_mind.ingest.faults import Fault, Faults
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason
from tera_mind.ingest.ome_tiff import describe
from tera_mind.ingest.records import read_record, understanding
from tera_mind.ingest.selection import Selection
from tera_mind.ingest.source import Plane, SectionSource, StainImage, TranscriptBatch, option, pick_stains
from tera_mind.ingest.tables import Table
from tera_mind.ingest.tiff import MaxPlane, TiffPlane

_NUMBERS = ("x_location", "y_location", "qv")
_TABLES = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")
_IMAGES = ("morphology_mip.ome.tif", "morphology_focus.ome.tif", "morphology.ome.tif")
#: channels of the multimodal segmentation kit, in the order of their files, for images without names
_CHANNELS = ("DAPI", "boundary", "18S", "interior")
_SPELLED = {"dapi": "DAPI", "18s": "18S"}
#: the stain of ribosomal RNA shows the cytoplasm as poly-T probes do
_STANDS_IN = {"polyt": "18S"}


@dataclass(frozen=True)
class XeniumReader:
    """10x Xenium output (experiment.xenium, transcripts.parquet, morphology images)."""

    EXAMPLE: ClassVar[str] = "tera-mind ingest xenium outs/ --out brain.zarr --pixel-um 0.425"

    min_qv: float = option(20.0, "drop transcripts of lower quality", "Q")
    stains: tuple[str, ...] = option(
        (), "stains to take (default: all); where PolyT is asked for, 18S stands in", "A,B"
    )

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The section of a folder.

        Raises `MissingFileError`, `FormatError` or `InputError`; several faults come as one `FaultsError`.
        """
        if not folder.is_dir():
            raise MissingFileError(f"expected a Xenium output folder at {folder}, nothing is there")
        faults, experiment, pixel_um, table, panel = Faults(), {}, 0.0, None, None
        found: dict[str, tuple[Path, Plane]] = {}
        with faults.catching(folder / "experiment.xenium"):
            experiment = _experiment(folder / "experiment.xenium")
            pixel_um = check_pixel_um(float(experiment["pixel_size"]), folder / "experiment.xenium")
        with faults.catching(folder / "transcripts.parquet"):
            table = _table(folder)
        with faults.catching(folder / "gene_panel.json"):
            panel = _panel(folder / "gene_panel.json")
        with faults.catching(folder):
            found = _channels(_image_files(folder, experiment), pixel_um, faults)
            if not len(faults):
                found = _pick(found, self.stains, folder)
        faults.raise_any()
        assert table is not None  # else its fault was raised
        name = folder.resolve().name
        um_to_px = np.diag([1 / pixel_um, 1 / pixel_um, 1.0])
        return [
            SectionSource(
                name=name,
                z_um=z_um,
                stains=tuple(StainImage(stain, plane, um_to_px) for stain, (_, plane) in found.items()),
                batches=XeniumTranscripts(table, self.min_qv),
                panel=panel,
                expected_batches=table.expected_batches,
                provenance={
                    "format": "xenium",
                    "folder": name,
                    "run": str(experiment.get("run_name", "")),
                    "software": str(experiment.get("analysis_sw_version", "")),
                    "images": {stain: path.name for stain, (path, _) in found.items()},
                    "pixel_um": pixel_um,
                    "min_qv": self.min_qv,
                }
                | ({} if "qv" in table.numbers else {"notices": [f"{table.path.name} has no qv: all were kept"]}),
            )
        ]


@dataclass(frozen=True)
class XeniumTranscripts:
    """The transcripts of a table; called, it streams those that are genes and good enough."""

    table: Table
    min_qv: float

    def __call__(self) -> Iterator[TranscriptBatch]:
        """Batches; raises `FormatError` where the table is damaged."""
        for first_row, batch in self.table.batches():
            codes, names = encode_names(batch.column("feature_name"))
            numbers = {
                name: np.asarray(batch.column(name).to_numpy(zero_copy_only=False), np.float64)
                for name in self.table.numbers
            }
            x_um, y_um = numbers["x_location"], numbers["y_location"]
            rows = Selection(len(codes), first_row)
            rows.drop_lost(x_um, y_um)
            rows.drop_no_genes(codes, names)
            if "is_gene" in self.table.flags:
                rows.drop(~_flags(batch.column("is_gene")), "no gene by is_gene")
            elif "codeword_category" in self.table.texts:
                kinds, categories = encode_names(batch.column("codeword_category"))
                genes = np.array([not kind or kind.endswith("gene") for kind in categories], bool)
                rows.drop(~genes[kinds], "no gene by codeword_category")
            if "qv" in numbers:
                rows.drop(~(numbers["qv"] >= self.min_qv), f"qv below {self.min_qv:g}")  # a missing one is dropped
            yield rows.batch(x_um, y_um, codes, names)

    def faults(self) -> Iterator[Fault]:
        """Every place of the table that cannot be read."""
        yield from self.table.faults()


def _flags(column: Any) -> NDArray[np.bool_]:
    """True and false as they are; a missing one is true."""
    return np.asarray(pc.fill_null(column, fill_value=True).to_numpy(zero_copy_only=False), bool)


def _experiment(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"expected experiment.xenium in {path.parent}: is this a Xenium output folder?")
    complaint = "cannot be read; expected JSON with a number 'pixel_size'"
    experiment = read_record(path, complaint)
    if "pixel_size" not in experiment:
        raise InputError(f"{path} has no 'pixel_size', so the units of the image are unknown; add it in um")
    with understanding(path, complaint):
        float(experiment["pixel_size"])
    return experiment


def _table(folder: Path) -> Table:
    path = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if path is None and (folder / "transcripts.zarr.zip").is_file():
        raise MissingFileError(
            f"expected transcripts.parquet in {folder}; transcripts.zarr.zip is made for viewing and not read, copy "
            "transcripts.parquet or transcripts.csv.gz too"
        )
    if path is None:
        raise MissingFileError(f"expected transcripts.parquet in {folder}; a partial bundle needs it too")
    texts, flags = ("feature_name", "codeword_category"), ("is_gene",)
    return Table.open(path, _NUMBERS, texts, flags, optional=("qv", "codeword_category", "is_gene"))


def _image_files(folder: Path, experiment: dict[str, Any]) -> list[Path]:
    """The folder of one file a channel where there is one, else the best single image."""
    several = sorted(p for p in (folder / "morphology_focus").glob("*.ome.tif") if not p.name.startswith("."))
    if several:
        return several
    listed = experiment.get("images")
    named = [listed.get(f"morphology_{kind}_filepath") for kind in ("mip", "focus")] if isinstance(listed, dict) else []
    for candidate in [*(name for name in named if isinstance(name, str) and name and "\0" not in name), *_IMAGES]:
        if (folder / candidate).is_file():
            return [folder / candidate]
    raise MissingFileError(
        f"expected a morphology image in {folder} (morphology_mip.ome.tif, morphology_focus.ome.tif or "
        "morphology_focus/*.ome.tif), found none"
    )


def _channels(files: Sequence[Path], pixel_um: float, faults: Faults) -> dict[str, tuple[Path, Plane]]:
    """Channel name -> file and image, checked against the pixel size of the experiment and one another's shape."""
    channels: dict[str, tuple[Path, Plane]] = {}
    for position, path in enumerate(files):
        with faults.catching(path):
            metadata = describe(path, position)
            if metadata.pixel_um and pixel_um and abs(metadata.pixel_um / pixel_um - 1) > 0.01:
                raise InputError(
                    f"{path} has pixels of {metadata.pixel_um:g} um, experiment.xenium says {pixel_um:g}: correct one "
                    "of them"
                )
            for place, channel in enumerate(metadata.channels):
                name = channel.name or _default_name(path, position + place)
                name = _SPELLED.get(name.lower(), name)
                if name in channels:
                    other = channels[name][0]
                    raise InputError(f"{path} and {other} are both channel {name!r}; leave one out of the folder")
                planes = [TiffPlane(path, page) for page in channel.pages]
                channels[name] = path, planes[0] if len(planes) == 1 else MaxPlane(planes, name)
                first, (_, image) = next(iter(channels.items()))
                if channels[name][1].shape != image.shape:
                    raise InputError(
                        f"{path} has {channels[name][1].shape} pixels, channel {first} has {image.shape}: all channels "
                        "of a section have one shape; are they of one run?"
                    )
    return channels


def _default_name(path: Path, position: int) -> str:
    """The name of a channel that the metadata does not name."""
    stem = re.fullmatch(r"ch\d+_(.+)\.ome\.tif", path.name)
    if stem:
        return stem[1]
    return _CHANNELS[position] if position < len(_CHANNELS) else f"channel{position}"


def _pick(found: dict[str, tuple[Path, Plane]], wanted: Sequence[str], folder: Path) -> dict[str, tuple[Path, Plane]]:
    """The wanted stains; one that is absent and has a stand-in takes its image and keeps the wanted name."""
    own = {name.lower() for name in found}
    for name in wanted:
        other = _STANDS_IN.get(name.lower())
        if name.lower() not in own and other in found:
            found = found | {name: found[other]}
    return {name: found[name] for name in pick_stains(list(found), wanted, folder)}


def _panel(path: Path) -> tuple[str, ...] | None:
    """Genes that the bundle's panel file declares, None without one."""
    if not path.is_file():
        return None
    complaint = "is no Xenium gene panel; repair it or take it out of the folder"
    record = read_record(path, complaint)
    with understanding(path, complaint):
        types = [target["type"] for target in record["payload"]["targets"]]
        names = {str(kind["data"]["name"]) for kind in types if kind.get("descriptor") == "gene"}
    return tuple(sorted(name for name in names if no_gene_reason(name) is None)) or None
