"""Generated volumes: an OME-Zarr image (stain, section, y, x) that says where it belongs and how it was made.

Version 1. Always marked synthetic. The box is in the pixels of the brain whose genes were painted. Pixels are uint8, or
float16 in [-1, 1] before the published rounding. One that is being generated is marked incomplete, and is opened by
nothing but its generation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_directory, atomic_file
from tera_mind.formats.attributes import read_attributes
from tera_mind.formats.ome import (
    PIXEL_TYPES,
    SHARD_PX,
    PixelType,
    ZarrArray,
    build_pyramid,
    create_multiscale,
    open_level,
    read_window,
    shard_windows,
)
from tera_mind.geometry import Box

VERSION = 1
#: what was done to the genes before painting
GENE_TREATMENTS = ("as measured", "shuffled", "zeroed")
_KEYS = (
    *("stains", "pixel_um", "brain", "box", "sections", "patch_px", "checkpoint", "seed", "steps", "genes", "settings"),
    "synthetic",
)


@dataclass(frozen=True)
class VolumeAttributes:
    """Where a volume belongs and how it was made.

    stains: names, in the order of the image's first axis; pixel_um: size of a pixel; brain, brain_fingerprint: name and
    `Brain.fingerprint` of the gene source; box: in that brain's pixels; sections: its section numbers, one a plane;
    patch_px: side of a generated patch; checkpoint: sha-256 of the checkpoint file; seed, steps: of the sampler;
    genes: "as measured", "shuffled" or "zeroed"; section_um: spacing shown to viewers; dtype: of a pixel, "uint8" or
    "float16"; settings: all else, plain JSON.
    """

    stains: tuple[str, ...]
    pixel_um: float
    brain: str
    brain_fingerprint: str
    box: Box
    sections: tuple[int, ...]
    patch_px: int
    checkpoint: str
    seed: int
    steps: int
    genes: str = "as measured"
    section_um: float = 10.0
    dtype: PixelType = "uint8"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in PIXEL_TYPES:
            raise InputError(f"pixels of a volume are {' or '.join(PIXEL_TYPES)}, got {self.dtype!r}")
        if self.genes not in GENE_TREATMENTS:
            raise InputError(f"genes of a volume are one of {', '.join(GENE_TREATMENTS)}, got {self.genes!r}")
        if len(set(self.sections)) != len(self.sections):
            raise InputError(f"every section of a volume comes once, got {self.sections}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(stain, section, height, width)."""
        return len(self.stains), len(self.sections), self.box.height, self.box.width

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "volume",
            "version": VERSION,
            "synthetic": True,
            "stains": list(self.stains),
            "pixel_um": self.pixel_um,
            "brain": {"name": self.brain, "fingerprint": self.brain_fingerprint},
            "box": [self.box.y0, self.box.y1, self.box.x0, self.box.x1],
            "sections": list(self.sections),
            "patch_px": self.patch_px,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "steps": self.steps,
            "genes": self.genes,
            "section_um": self.section_um,
            "dtype": self.dtype,
            "settings": self.settings,
            "software": {"tera_mind": __version__, "zarr": zarr.__version__},
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> VolumeAttributes:
        return VolumeAttributes(
            stains=tuple(record["stains"]),
            pixel_um=float(record["pixel_um"]),
            brain=str(record["brain"]["name"]),
            brain_fingerprint=str(record["brain"]["fingerprint"]),
            box=Box(*record["box"]),
            sections=tuple(record["sections"]),
            patch_px=int(record["patch_px"]),
            checkpoint=str(record["checkpoint"]),
            seed=int(record["seed"]),
            steps=int(record["steps"]),
            genes=str(record["genes"]),
            section_um=float(record.get("section_um", 10.0)),
            dtype=record.get("dtype", "uint8"),
            settings=dict(record["settings"]),
        )


class Volume:
    """A generated volume opened for reading; picklable, arrays are opened when first used."""

    def __init__(self, path: Path, attributes: VolumeAttributes) -> None:
        self.path = path
        self.attributes = attributes

    @classmethod
    def open(cls, path: str | Path) -> Volume:
        """Open and validate a volume. Raises `MissingFileError` or `FormatError`, as for one that is not finished."""
        path = Path(path)
        record = read_attributes(path, "volume", VERSION, _KEYS, "make one with `tera-mind generate`")
        if not record.get("complete", True):
            raise FormatError(
                f"{path} is not finished: give the command that began it again to go on; "
                f"`tera-mind status {path}` says how far it is"
            )
        try:
            volume = cls(path, VolumeAttributes.from_json(record))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"attributes of {path} are malformed ({error!r}); generate it again") from None
        if volume._image.shape != volume.shape:
            raise FormatError(f"{path} promises an image of {volume.shape}, holds {volume._image.shape}")
        return volume

    @classmethod
    def write(
        cls, path: str | Path, image: NDArray[np.uint8], attributes: VolumeAttributes, *, overwrite: bool = True
    ) -> Volume:
        """Write (stain, section, y, x) uint8 with its pyramid, whole or not at all, and open it.

        Raises `InputError` when the image does not have the attributes' shape, or the path is taken and `overwrite`
        is false.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} is already there; choose another path or overwrite it")
        if image.shape != attributes.shape or image.dtype != np.uint8 or attributes.dtype != "uint8":
            raise InputError(f"a volume of {attributes.shape} uint8 was promised, got {image.shape} {image.dtype}")
        shape = attributes.shape
        with atomic_directory(path) as folder:
            level = create_volume(folder, attributes, path.stem)
            for stain in range(shape[0]):
                for section in range(shape[1]):
                    for box in shard_windows(shape):
                        level[(stain, section, *box.slices())] = image[(stain, section, *box.slices())]
            build_pyramid(folder)
            mark_complete(folder)
        return cls.open(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Volume, (self.path, self.attributes)

    def __repr__(self) -> str:
        return f"Volume({str(self.path)!r}, shape={self.shape}, box={self.box})"

    @cached_property
    def _image(self) -> ZarrArray:
        return open_level(self.path, dtype=self.attributes.dtype)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(stain, section, height, width)."""
        return self.attributes.shape

    @property
    def box(self) -> Box:
        """Where the volume lies, in the brain's pixels."""
        return self.attributes.box

    def image(self, box: Box | None = None, sections: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Read (stain, section, y, x) uint8; `box` is in the brain's pixels, `sections` are the brain's numbers.

        Pixels of float16 are rounded as published. Raises `InputError` when either leaves the volume.
        """
        stored = self.values(box, sections)
        return stored if stored.dtype == np.uint8 else rounded(stored)

    def values(self, box: Box | None = None, sections: Sequence[int] | None = None) -> NDArray[Any]:
        """Read (stain, section, y, x) as `image` does, in the type in which it is stored."""
        own = self.attributes.box
        box = own if box is None else box
        sections = self.attributes.sections if sections is None else sections
        missing = [section for section in sections if section not in self.attributes.sections]
        if missing or not own.contains(box):
            raise InputError(
                f"volume {self.path} holds sections {list(self.attributes.sections)} and box {own}, "
                f"asked for sections {list(sections)} and box {box}"
            )
        planes = [self.attributes.sections.index(section) for section in sections]
        return read_window(self._image, box.shift(-own.y0, -own.x0), planes, 0)


def rounded(values: NDArray[Any]) -> NDArray[np.uint8]:
    """[-1, 1] to 0..255, the inverse of x / 127.5 - 1, rounded to nearest, as published."""
    grey: NDArray[np.uint8] = np.clip(np.rint((values.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
    return grey


def create_volume(folder: Path, attributes: VolumeAttributes, name: str, shard_px: int = SHARD_PX) -> ZarrArray:
    """An empty volume in `folder`, marked incomplete; its level 0, for writing. See `create_multiscale`."""
    level = create_multiscale(
        folder,
        attributes.shape,
        name=name,
        stains=attributes.stains,
        pixel_um=attributes.pixel_um,
        section_um=attributes.section_um,
        dtype=attributes.dtype,
        shard_px=shard_px,
    )
    zarr.open_group(folder, mode="r+").attrs["tera_mind"] = {**attributes.to_json(), "complete": False}
    return level


def mark_complete(folder: Path) -> None:
    """Let everyone open a volume whose pixels are all there and durable."""
    path = folder / "zarr.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["attributes"]["tera_mind"].pop("complete", None)
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(record, indent=1), encoding="utf-8")


def is_unfinished(path: Path) -> bool:
    """Whether a volume lies at `path` whose generation has begun and not ended."""
    try:
        record = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        own = record["attributes"]["tera_mind"]
        return own["format"] == "volume" and not own.get("complete", True)
    except (OSError, ValueError, KeyError, TypeError):
        return False
