"""Generated volumes: an OME-Zarr image (stain, section, y, x) uint8 that says where it belongs and how it was made.

Version 1. Always marked synthetic. The box is in the pixels of the brain whose genes were painted.
"""

from __future__ import annotations

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
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.brain import read_attributes
from tera_mind.formats.ome import ZarrArray, build_pyramid, create_multiscale, open_level, read_window, shard_windows
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
    genes: "as measured", "shuffled" or "zeroed"; section_um: spacing shown to viewers; settings: all else, plain JSON.
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
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
            settings=dict(record["settings"]),
        )


class Volume:
    """A generated volume opened for reading; picklable, arrays are opened when first used."""

    def __init__(self, path: Path, attributes: VolumeAttributes) -> None:
        self.path = path
        self.attributes = attributes

    @classmethod
    def open(cls, path: str | Path) -> Volume:
        """Open and validate a volume. Raises `MissingFileError` or `FormatError`."""
        path = Path(path)
        record = read_attributes(path, "volume", VERSION, _KEYS, "make one with `tera-mind generate`")
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
        if image.shape != attributes.shape or image.dtype != np.uint8:
            raise InputError(f"a volume of {attributes.shape} uint8 was promised, got {image.shape} {image.dtype}")
        shape = attributes.shape
        with atomic_directory(path) as folder:
            level = create_multiscale(
                folder,
                shape,
                name=path.stem,
                stains=attributes.stains,
                pixel_um=attributes.pixel_um,
                section_um=attributes.section_um,
            )
            for stain in range(shape[0]):
                for section in range(shape[1]):
                    for box in shard_windows(shape):
                        level[(stain, section, *box.slices())] = image[(stain, section, *box.slices())]
            build_pyramid(folder)
            zarr.open_group(folder, mode="r+").attrs["tera_mind"] = attributes.to_json()
        return cls.open(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Volume, (self.path, self.attributes)

    def __repr__(self) -> str:
        return f"Volume({str(self.path)!r}, shape={self.shape}, box={self.box})"

    @cached_property
    def _image(self) -> ZarrArray:
        return open_level(self.path)

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

        Raises `InputError` when either leaves the volume.
        """
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
