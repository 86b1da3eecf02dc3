"""Tiny inputs of the formats beside Xenium and MERSCOPE, each with the truth it was made from.

`BUILDERS` maps a format of the registry to `build(folder) -> paths to give to its reader`, a few milliseconds each.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import zarr
from instruments import write_merscope

from tera_mind.geometry import Box
from tera_mind.ingest.source import Reader, SectionSource, expanded

COSMX_UM = 0.12
GENES = ("Gad1", "Slc17a7", "Aqp4")


@dataclass(frozen=True)
class Truth:
    """What a reader should find: microns of the transcripts by gene, and whole images by stain."""

    x_um: np.ndarray
    y_um: np.ndarray
    gene: list[str]
    images: dict[str, np.ndarray]


def dotted(shape: tuple[int, int], y: np.ndarray, x: np.ndarray, value: int = 4000) -> np.ndarray:
    """A dim image with a bright pixel under every transcript."""
    image = np.random.default_rng(3).integers(20, 200, shape).astype(np.uint16)
    image[np.floor(y).astype(int), np.floor(x).astype(int)] = value
    return image


def write_cosmx(
    folder: Path, *, older: bool = False, millimetres: bool = False, zipped: bool = False, gap: bool = False
) -> Truth:
    """Four FOVs of 40 x 48 px, two by two, the fourth without an image where `gap`.

    The truth is laid out on the whole slide image first (y downward) and cut into FOVs, so it knows nothing of the
    way the reader puts them together. `older`: local y counts from the lower edge.
    """
    (folder / "CellStatsDir" / "Morphology2D").mkdir(parents=True)
    rng = np.random.default_rng(5)
    height, width, rows = 40, 48, 160
    y, x = rng.uniform(0, 2 * height, rows), rng.uniform(0, 2 * width, rows)
    gene = [(*GENES, "Negative3", "FalseCode7", "SystemControl12")[index % 6] for index in range(rows)]
    whole = {"rRNA": dotted((2 * height, 2 * width), y, x), "DAPI": dotted((2 * height, 2 * width), y, x, 3000)}
    left_px, top_px = 51_000.0, 207_000.0  # of the slide: x to the right, y upward
    lines, places = [], []
    for fov, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)], start=1):
        corner = (left_px + column * width, top_px - row * height)  # of the FOV's upper left
        unit = 1e3 / COSMX_UM if millimetres else 1.0
        # the position that the file gives has a fixed distance from the corner, another one in every version
        position = (corner[0] / unit, (corner[1] - (height if older else 0)) / unit)
        places.append(f"{fov},{position[0]!r},{position[1]!r}")
        inside = (y // height == row) & (x // width == column)
        for index in np.flatnonzero(inside):
            local_x, down = x[index] - column * width, y[index] - row * height
            local_y = height - down if older else down
            slide = f"{corner[0] + local_x:.4f},{corner[1] - down:.4f}"
            lines.append(f"{fov},0,{local_x:.4f},{local_y:.4f},{slide},1,{gene[index]},None")
        if gap and fov == 4:
            for image in whole.values():
                image[row * height :, column * width :] = 0
            continue
        box = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
        reagents = [{"BiologicalTarget": "rRNA", "Fluorophore": {"ChannelId": "G"}}]
        reagents += [{"BiologicalTarget": "DNA", "Fluorophore": {"ChannelId": "U"}}]
        record = {"MorphologyKit": {"MorphologyReagents": reagents}, "ChannelOrder": "GU"}
        tifffile.imwrite(
            folder / "CellStatsDir" / "Morphology2D" / f"2024_S1_C902_F{fov:05d}.TIF",
            np.stack([whole["rRNA"][box], whole["DAPI"][box]]), description=json.dumps(record), metadata=None,
            photometric="minisblack", **({"compression": "zlib", "rowsperstrip": 7} if fov == 1 else {}),
        )  # fmt: skip
    header = '"fov","cell_ID","x_local_px","y_local_px","x_global_px","y_global_px","z","target","CellComp"'
    axes = "x_mm,Y_mm" if millimetres else "x_global_px,y_global_px"
    tables = {"S1_tx_file.csv": [header, *lines], "S1_fov_positions_file.csv": [f"FOV,{axes}", *places]}
    tables["S1_exprMat_file.csv"] = ["fov,cell_ID," + ",".join([*GENES, "Vip", "Negative3"]), "1,1,0,0,0,0,0"]
    for name, text in tables.items():
        raw = ("\n".join(text) + "\n").encode()
        (folder / (name + ".gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    kept = np.array([name in GENES for name in gene])
    if gap:
        kept &= ~((y >= height) & (x >= width))
    names = [name for name, keep in zip(gene, kept, strict=True) if keep]
    return Truth(x[kept] * COSMX_UM, y[kept] * COSMX_UM, names, whole)


def ome_xml(shape: tuple[int, int, int], names: tuple[str, ...], pixel_um: float) -> str:
    """OME-XML of a (c, y, x) uint16 image."""
    channels = "".join(f'<Channel ID="Channel:0:{i}" Name="{n}" SamplesPerPixel="1"/>' for i, n in enumerate(names))
    return (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint16" SizeX="{shape[2]}" SizeY="{shape[1]}" SizeZ="1" SizeC="{shape[0]}" '
        f'SizeT="1" PhysicalSizeX="{pixel_um}" PhysicalSizeY="{pixel_um}">{channels}<TiffData/></Pixels></Image></OME>'
    )


def write_table(folder: Path, *, pixel_um: float = 0.5, rows: int = 120) -> Truth:
    """`spots.csv` in microns with a quality, and `stains.ome.tif` of two channels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    shape = (64, 80)
    x_um, y_um = rng.uniform(0, shape[1] * pixel_um, rows), rng.uniform(0, shape[0] * pixel_um, rows)
    gene = [(*GENES, "BLANK_1")[index % 4] for index in range(rows)]
    quality = [30.0 if index % 5 else 10.0 for index in range(rows)]
    columns = zip(x_um.tolist(), y_um.tolist(), gene, quality, strict=True)
    lines = ["x_um,y_um,symbol,score", *(f"{x!r},{y!r},{name},{q}" for x, y, name, q in columns)]
    (folder / "spots.csv").write_text("\n".join(lines) + "\n")
    images = {"DAPI": dotted(shape, y_um / pixel_um, x_um / pixel_um), "PolyT": dotted(shape, y_um * 0, x_um * 0)}
    tifffile.imwrite(
        folder / "stains.ome.tif", np.stack(list(images.values())), tile=(32, 32), photometric="minisblack",
        description=ome_xml((2, *shape), ("DAPI", "PolyT"), pixel_um), metadata=None,
    )  # fmt: skip
    kept = np.array([name in GENES and q >= 20 for name, q in zip(gene, quality, strict=True)])
    return Truth(x_um[kept], y_um[kept], [name for name, keep in zip(gene, kept, strict=True) if keep], images)


def write_ngff(folder: Path, image: np.ndarray, *, version: str, pixel_um: float, labels: tuple[str, ...]) -> Path:
    """An OME-Zarr image (c, z, y, x) of one level, 0.4 or 0.5, in millimetres, its corner at x = 1, y = 2 um."""
    v3 = version == "0.5"
    root = zarr.create_group(folder, zarr_format=3 if v3 else 2)
    array = root.create_array("s0", shape=image.shape, dtype=image.dtype, chunks=(1, 1, 32, 32))
    array[:] = image
    size = pixel_um / 1e3
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    steps = [
        {"type": "scale", "scale": [1, 1, size, size]},
        {"type": "translation", "translation": [0, 0, 0.002, 0.001]},
    ]
    record = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": steps}]}],
        "omero": {"channels": [{"label": label} for label in labels]},
    }
    root.attrs.update({"ome": record | {"version": "0.5"}} if v3 else record)
    return folder


def write_zarr_zip(path: Path, array: np.ndarray, *, packed: bool = False) -> None:
    """A zarr 2 array in a zip, written by its specification: two channels a chunk, zlib where `packed`."""
    chunks = [2, *array.shape[1:]]
    compressor = {"id": "zlib", "level": 1} if packed else None
    record = {"zarr_format": 2, "shape": array.shape, "chunks": chunks, "dtype": "|u1", "order": "C", "filters": None}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(".zarray", json.dumps(record | {"compressor": compressor, "fill_value": 0}))
        for index in range(0, len(array), 2):
            chunk = np.zeros(chunks, np.uint8)  # the last one is padded
            chunk[: len(array[index : index + 2])] = array[index : index + 2]
            raw = chunk.tobytes()
            file.writestr(f"{index // 2}.0.0", zlib.compress(raw, 1) if packed else raw)


def write_published(folder: Path, *, sections: int = 3, core: int = 16, margin: int = 8) -> list[Truth]:
    """Tiles of 2 x 3 cores whose canvas begins at pixel (core, core), a truth a section; tiles overlap by margins."""
    rng = np.random.default_rng(11)
    (folder / "genes").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "genes.txt").write_text("\n".join(GENES) + "\n")
    tall, wide = 2 * core, 3 * core
    frame = (tall + 2 * margin, wide + 2 * margin)  # with the margin around the outermost cores
    counts = rng.poisson(0.02, (*frame, sections, len(GENES)))
    counts[margin + 3, margin + 5, :, 0] = 3
    images = rng.integers(0, 256, (2, sections, *frame)).astype(np.uint8)
    for row in range(2):
        for column in range(3):
            y, x = row * core, column * core  # of the tile in the frame
            part = np.s_[y : y + core + 2 * margin, x : x + core + 2 * margin]
            edges = (core + y, 2 * core + y, core + x, 2 * core + x)
            outer = (edges[0] - margin, edges[1] + margin, edges[2] - margin, edges[3] + margin)
            name = "_".join(str(number) for number in (*edges, *outer))
            flat = counts[part].reshape(core + 2 * margin, core + 2 * margin, -1)
            coords = np.stack(np.nonzero(flat)).astype(np.uint16)
            np.savez_compressed(
                folder / "genes" / f"{name}.npz", coords=coords, data=flat[tuple(coords)].astype(np.uint8),
                shape=np.array(flat.shape), fill_value=np.array(0, np.uint8),
            )  # fmt: skip
            tile = images[(slice(None), slice(None), *part)].reshape(-1, *flat.shape[:2])
            write_zarr_zip(folder / "images" / f"{name}.zip", tile, packed=column == 1)
    inner = np.s_[margin : margin + tall, margin : margin + wide]
    truths = []
    for section in range(sections):
        own = counts[inner][:, :, section]
        y, x, gene = np.nonzero(own)
        y, x, gene = (np.repeat(axis, own[own > 0]) for axis in (y, x, gene))
        pictures = {stain: images[index, section][inner] for index, stain in enumerate(("DAPI", "PolyT"))}
        truths.append(Truth((x + 0.5) * 0.108, (y + 0.5) * 0.108, [GENES[number] for number in gene], pictures))
    return truths


def write_bil(folder: Path) -> list[Path]:
    """Two sections of a mouse in the deposit's layout; MERSCOPE folders otherwise."""
    sections = []
    for name in ("1199650932", "1199650935"):
        section = folder / name
        write_merscope(section, planes=(0,), rows=200)
        inner = section / "merfish_output" / "cellpose_cyto2_nuclei"
        inner.mkdir(parents=True)
        (section / "detected_transcripts.csv").rename(inner / "cellpose-detected_transcripts.csv")
        (section / "images").rename(section / "merfish_output" / "images")
        sections.append(section)
    return sections


def _build_cosmx(folder: Path) -> list[Path]:
    write_cosmx(folder / "slide")
    return [folder / "slide"]


def _build_table(folder: Path) -> list[Path]:
    write_table(folder / "spots")
    return [folder / "spots"]


def _build_published(folder: Path) -> list[Path]:
    write_published(folder / "brain", sections=2)
    return [folder / "brain"]


def _build_bil(folder: Path) -> list[Path]:
    write_bil(folder / "mouse")
    return [folder / "mouse"]


BUILDERS: dict[str, Callable[[Path], list[Path]]] = {
    "cosmx": _build_cosmx,
    "table": _build_table,
    "published": _build_published,
    "bil": _build_bil,
}
#: settings that the built inputs need
SETTINGS: dict[str, dict[str, object]] = {
    "cosmx": {"fov_pixel_um": COSMX_UM},
    "table": {"x": "x_um", "y": "y_um", "gene": "symbol", "quality": "score", "min_quality": 20.0},
    "published": {},
    "bil": {},
}


def found(source: SectionSource) -> list[tuple[str, float, float]]:
    """Every transcript of a section as (gene, x, y) in microns rounded to nanometres, sorted."""
    rows = []
    for batch in expanded(source.batches()):
        places = np.round(np.stack([batch.x_um, batch.y_um], axis=1), 3).tolist()
        rows += [(batch.names[code], *place) for code, place in zip(batch.gene, places, strict=True)]
    return sorted(rows)


def expected(truth: Truth) -> list[tuple[str, float, float]]:
    """The same of the truth."""
    places = np.round(np.stack([truth.x_um, truth.y_um], axis=1), 3).tolist()
    return sorted((name, *place) for name, place in zip(truth.gene, places, strict=True))


def same_transcripts(source: SectionSource, truth: Truth, within_um: float = 1e-3) -> None:
    """Genes and positions agree."""
    ours, theirs = found(source), expected(truth)
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    np.testing.assert_allclose([row[1:] for row in ours], [row[1:] for row in theirs], atol=within_um)


def same_images(source: SectionSource, truth: Truth, step: tuple[int, int] = (23, 31)) -> None:
    """Every window of every stain is the truth's."""
    for image in source.stains:
        whole = truth.images[image.name]
        assert image.plane.shape == whole.shape
        for box in Box(0, whole.shape[0], 0, whole.shape[1]).tiles(*step):
            window = image.plane.read(box)
            assert window.dtype == whole.dtype
            np.testing.assert_array_equal(window, whole[box.slices()])


def dropped(source: SectionSource) -> dict[str, int]:
    """Rows left out by reason."""
    total: Counter[str] = Counter()
    for batch in source.batches():
        total.update(batch.dropped)
    return dict(total)


def read_all(reader: Reader, path: Path) -> list[SectionSource]:
    """The sections of a path, their streams read to the end and every image's corner."""
    sections = reader.sections(path, 0.0)
    for section in sections:
        for _ in section.batches():
            pass
        for image in section.stains:
            image.plane.read(Box(0, 1, 0, 1))
    return sections
