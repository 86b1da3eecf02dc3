"""What finds nuclei: one small interface, so that real and generated images are always segmented by the same means.

The watershed needs nothing but this package; Cellpose (`tera_mind.metrics.nuclei.cellpose`) needs its extra and a file
of weights. Both measure brightness once on the real image of a section and apply that scale to every image compared
with it: a threshold chosen on a generated image of its own would find as many "nuclei" in noise as in tissue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from tera_mind.errors import InputError
from tera_mind.metrics.nuclei import watershed
from tera_mind.metrics.nuclei.cellpose import Cellpose
from tera_mind.metrics.nuclei.watershed import JOIN, Image, Labels, NucleusSettings, Scale

__all__ = ["Cellpose", "NucleusSettings", "Scale", "Segmenter", "Watershed"]


@runtime_checkable
class Segmenter(Protocol):
    """Finds nuclei in images of one pixel size; picklable, the same in every process."""

    @property
    def name(self) -> str: ...

    @property
    def halo_px(self) -> int:
        """Margin around a block within which an image must be known, so that the block's nuclei are the image's."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the outcome depends on, as plain JSON."""
        ...

    def calibrate(self, images: Iterable[Image]) -> Scale:
        """Brightness of the real image of a section, from windows of it; the order of the windows does not matter."""
        ...

    def segment(self, image: Image, scale: Scale) -> Labels:
        """Nuclei 1, 2, ... of an image, 0 for none, int32."""
        ...


@dataclass(frozen=True)
class Watershed:
    """The default: `tera_mind.metrics.nuclei.watershed`.

    A block with its halo gives the nuclei that the whole image gives, bit for bit, but for one case: basins are joined
    best pair first, so along a chain of touching nuclei a different outcome at the cut may, link by link, reach
    further than the halo. The tests see none on real and simulated tissue.
    """

    pixel_um: float
    nucleus: NucleusSettings = field(default_factory=NucleusSettings)

    def __post_init__(self) -> None:
        if not self.pixel_um > 0:
            raise InputError(f"the pixel size must be above 0 um, got {self.pixel_um:g}")

    @property
    def name(self) -> str:
        return "watershed"

    @property
    def halo_px(self) -> int:
        return watershed.halo_px(self.pixel_um, self.nucleus)

    def settings(self) -> dict[str, Any]:
        return {"segmenter": self.name, **asdict(self.nucleus), "join": asdict(JOIN)}

    def calibrate(self, images: Iterable[Image]) -> Scale:
        return watershed.calibrate(images, self.pixel_um, self.nucleus)

    def segment(self, image: Image, scale: Scale) -> Labels:
        return watershed.segment(image, self.pixel_um, scale, self.nucleus)
