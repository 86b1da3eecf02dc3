"""What OME-XML says of a TIFF: its channels, the pages that hold them, its pixel size.

Source: the OME-TIFF specification (docs.openmicroscopy.org/ome-model), TiffData and BinaryOnly elements. In a
multi-file set every file's XML describes all channels; those of other files are left out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import tifffile

from tera_mind.errors import FormatError, InputError, MissingFileError, TeraMindError
from tera_mind.ingest.tiff import UNREADABLE

_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "mm": 1e3, "nm": 1e-3}


@dataclass(frozen=True)
class Channel:
    """A channel of a file: its name ("" where the metadata has none) and its pages, one a z plane."""

    name: str
    pages: tuple[int, ...]


@dataclass(frozen=True)
class OmeTiff:
    """The channels of a file and its pixel size in microns, None where the metadata does not say it."""

    channels: tuple[Channel, ...]
    pixel_um: float | None = None


def describe(path: Path, position: int = 0) -> OmeTiff:
    """Read the metadata of a TIFF.

    `position` is the file's place among its siblings: the channel it holds where the XML names only files of other
    names. Without OME-XML a file is one channel. Raises `MissingFileError`, `FormatError` or `InputError`.
    """
    text, pages = _description(path)
    if "<OME" not in text:
        return OmeTiff((Channel("", (0,)),))
    root = _parse(text, path)
    own_uuid = root.get("UUID", "")
    elsewhere = next(_children(root, "BinaryOnly"), None)
    if elsewhere is not None:
        sibling = path.with_name(elsewhere.get("MetadataFile", ""))
        if not sibling.is_file() or sibling == path:
            raise MissingFileError(f"{path} keeps its metadata in {sibling.name}, which is not beside it; copy it too")
        root = _parse(_description(sibling)[0], sibling)
    pixels = next((found for image in _children(root, "Image") for found in _children(image, "Pixels")), None)
    if pixels is None:
        raise FormatError(f"the OME-XML of {path} describes no pixels; export the image again")
    try:
        return OmeTiff(_channels(pixels, path, own_uuid, position, pages), _pixel_um(pixels, path))
    except TeraMindError:
        raise
    except (ValueError, KeyError, OverflowError) as error:
        raise FormatError(f"the OME-XML of {path} makes no sense ({error!r}); export the image again") from None


def _description(path: Path) -> tuple[str, int]:
    """The first page's description and the number of pages."""
    if not path.is_file():
        raise MissingFileError(f"expected an image at {path}, nothing is there")
    try:
        with tifffile.TiffFile(path, is_ome=False) as tif:
            first: Any = tif.pages.first
            return str(first.description), len(tif.pages)
    except UNREADABLE as error:
        raise FormatError(f"image {path} cannot be read as TIFF ({error}); is it damaged or incomplete?") from None


def _parse(text: str, path: Path) -> ET.Element:
    if "<!DOCTYPE" in text:  # entities that expand without end need one, OME-XML does not
        raise FormatError(f"the OME-XML of {path} has a DOCTYPE, which OME-XML never has; export the image again")
    try:
        return ET.fromstring(text.strip().strip("\0").encode())  # noqa: S314  (no entities, see above)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise FormatError(f"the OME-XML of {path} is broken ({error}); export the image again") from None


def _children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    """Children of a name in any namespace: it changes with the version of OME."""
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _pixel_um(pixels: ET.Element, path: Path) -> float | None:
    sizes = []
    for axis in "XY":
        size = pixels.get(f"PhysicalSize{axis}")
        if size is None:
            continue
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if unit not in _MICRONS:
            raise InputError(
                f"{path} gives its pixel size in unknown unit {unit!r}, expected one of {', '.join(_MICRONS)}"
            )
        sizes.append(float(size) * _MICRONS[unit])
    if not sizes:
        return None
    if not min(sizes) > 0 or max(sizes) / min(sizes) > 1.01:
        raise InputError(f"{path} has pixels of {sizes[0]:g} x {sizes[-1]:g} um, expected squares; correct its OME-XML")
    return sizes[0]


def _channels(pixels: ET.Element, path: Path, own_uuid: str, position: int, pages: int) -> tuple[Channel, ...]:
    sizes = {axis: int(pixels.get(f"Size{axis}", "1")) for axis in "ZCT"}
    if sizes["T"] != 1:
        raise InputError(f"{path} holds {sizes['T']} time points, expected one; export a single one")
    declared = [channel.get("Name", "") for channel in _children(pixels, "Channel")]
    if any(int(channel.get("SamplesPerPixel", "1")) != 1 for channel in _children(pixels, "Channel")):
        raise FormatError(f"expected a 2-D uint8 or uint16 image in {path}, got a colour image")
    if not 0 < sizes["C"] * sizes["Z"] <= 2**16:
        raise FormatError(f"the OME-XML of {path} declares {sizes['C']} channels of {sizes['Z']} planes")
    names = [declared[index] if index < len(declared) else "" for index in range(sizes["C"])]
    found = _pages(pixels, sizes, path, own_uuid)
    if not found:  # the XML speaks of files of other names: this one was renamed
        if pages != sizes["Z"]:
            raise InputError(f"the OME-XML of {path} names other files only, so its {pages} pages have no channel")
        name = names[position] if position < len(names) else ""
        return (Channel(name, tuple(range(pages))),)
    ordered = sorted({channel for channel, _ in found})
    return tuple(
        Channel(names[channel], tuple(found[key] for key in sorted(found) if key[0] == channel)) for channel in ordered
    )


def _pages(pixels: ET.Element, sizes: dict[str, int], path: Path, own_uuid: str) -> dict[tuple[int, int], int]:
    """(channel, z) -> page, of the planes that this file holds."""
    order = [axis for axis in pixels.get("DimensionOrder", "XYCZT") if axis in sizes]
    if sorted(order) != ["C", "T", "Z"]:
        raise ValueError(f"DimensionOrder {pixels.get('DimensionOrder')}")
    steps = {axis: prod(sizes[before] for before in order[: order.index(axis)]) for axis in order}
    total = prod(sizes.values())
    found: dict[tuple[int, int], int] = {}
    entries = list(_children(pixels, "TiffData"))
    for entry in entries or [ET.Element("TiffData")]:
        if not _is_own(entry, path, own_uuid):
            continue
        page = int(entry.get("IFD", "0"))
        count = int(entry.get("PlaneCount", "1" if "IFD" in entry.attrib else str(total)))
        first = sum(int(entry.get(f"First{axis}", "0")) * steps[axis] for axis in order)
        if min(page, count, first) < 0:
            raise ValueError("negative numbers of planes")
        for plane in range(first, min(first + count, total)):
            place = {axis: plane // steps[axis] % sizes[axis] for axis in order}
            found[place["C"], place["Z"]] = page + plane - first
    return found


def _is_own(entry: ET.Element, path: Path, own_uuid: str) -> bool:
    uuid = next(_children(entry, "UUID"), None)
    if uuid is None:
        return True
    return uuid.get("FileName") == path.name or bool(own_uuid and (uuid.text or "").strip() == own_uuid)
