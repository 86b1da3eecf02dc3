"""The morphology images of CosMx: which file is which field of view, and what its pages are called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tifffile

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.tiff import UNREADABLE

_FOLDERS = ("Morphology2D", "CellComposite")
_FOV = re.compile(r".*_F(\d+)(?:_[^_]*)?\.tiff?", re.IGNORECASE)
#: the channel that NanoString calls DNA is DAPI everywhere else
_NAMES = {"DNA": "DAPI"}


def fov_images(folder: Path, images: str) -> dict[int, Path]:
    """FOV -> TIFF, in the order of FOVs. Raises `MissingFileError` or `InputError`."""
    if images:
        places = [folder / images]
    else:
        places = [place for name in _FOLDERS for place in sorted(folder.rglob(name)) if place.is_dir()] or [folder]
    for place in places:
        files: dict[int, Path] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            match = _FOV.fullmatch(path.name)
            if match is None or path.name.startswith("."):
                continue
            other = files.setdefault(int(match[1]), path)
            if other != path:
                raise InputError(f"{other} and {path} are both FOV {int(match[1])}; leave one of them in the folder")
        if files:
            return dict(sorted(files.items()))
    raise MissingFileError(
        f"expected a TIFF a field of view (..._F001.TIF) in {' or '.join(str(place) for place in places)}, found none"
    )


def fov_channels(path: Path, given: tuple[str, ...]) -> dict[str, int]:
    """Channel -> page of the FOV images: as given, as the file's description says, or by number.

    Raises `FormatError` or `InputError`.
    """
    try:
        with tifffile.TiffFile(path, is_ome=False) as tif:
            pages = len(tif.pages)
            names = given or _described(str(tif.pages.first.description))
    except UNREADABLE as error:
        raise FormatError(f"image {path} cannot be read as TIFF ({error}); is it damaged or incomplete?") from None
    if given and len(given) != pages:
        raise InputError(f"{path} has {pages} pages, --channels names {len(given)}")
    if len(names) != pages:
        names = ("DAPI",) if pages == 1 else tuple(f"channel{index}" for index in range(pages))
    if len(set(names)) != len(names):
        raise InputError(f"{path} calls two of its channels alike ({', '.join(names)}); name them with --channels")
    return {name: page for page, name in enumerate(names)}


def _described(description: str) -> tuple[str, ...]:
    """Targets of the channels in page order, from the JSON that the instrument writes into the first page."""
    try:
        record = json.loads(description)
    except ValueError:
        return ()
    order = next((value for key, value in _pairs(record) if key == "ChannelOrder" and isinstance(value, str)), "")
    targets: dict[str, str] = {}
    for reagent in _dicts(record):
        channel = next((str(value) for key, value in _pairs(reagent) if key == "ChannelId"), "")
        if "BiologicalTarget" in reagent and channel:
            targets.setdefault(channel, str(reagent["BiologicalTarget"]).replace("/", "."))
    return tuple(_NAMES.get(targets.get(letter, letter), targets.get(letter, letter)) for letter in order)


def _dicts(record: Any) -> list[dict[str, Any]]:
    """Every object in a JSON record, outer ones first."""
    if isinstance(record, dict):
        return [record, *(inner for value in record.values() for inner in _dicts(value))]
    return [inner for value in record for inner in _dicts(value)] if isinstance(record, list) else []


def _pairs(record: Any) -> list[tuple[str, Any]]:
    return [pair for inner in _dicts(record) for pair in inner.items()]
