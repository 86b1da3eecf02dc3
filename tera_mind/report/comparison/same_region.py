"""The comparison's pictures: one region as every entry painted it, real tissue first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.report import pictures
from tera_mind.report.comparison.scores import Comparison
from tera_mind.report.comparison.style import Drawing, grid_figure
from tera_mind.report.tissue import pick_boxes

#: side of the shown region in pixels, and the side to which it is enlarged, nearest pixel
SHOWN_PX, PRINTED_PX = 512, 512
#: panels beside each other
ACROSS = 4


def same_region(comparison: Comparison) -> Drawing | None:
    """A panel an entry, all of one section, box and display range; of several seeds the first is shown.

    The box has as many transcripts as four in five of all such boxes have at most. None where brain or volumes are no
    longer where they were evaluated, or share no pixel; entries without a volume (controls that are computed) are left
    out and named in the caption.
    """
    competing = [entry for entry in comparison.entries if entry.competes]
    settings = competing[0].runs[0].settings
    paths = {entry.name: entry.runs[0].settings.get("volumes", {}).get(entry.method) for entry in competing}
    volumes = {name: Volume.open(Path(path)) for name, path in paths.items() if path and Path(path).exists()}
    if not volumes or not Path(settings.get("brain", "")).is_dir():
        return None
    brain = Brain.open(Path(settings["brain"]))
    box, section = brain.canvas, int(settings["preview_section"])
    for volume in volumes.values():
        box = box.intersect(volume.box)
    stains = [s for s in brain.stains if all(s in volume.attributes.stains for volume in volumes.values())]
    if box.is_empty or not stains or any(section not in volume.attributes.sections for volume in volumes.values()):
        return None
    box = pick_boxes(brain, section, box, min(SHOWN_PX, box.height, box.width), (0.8,))[0]

    def read(source: Brain | Volume, names: Any) -> NDArray[np.uint8]:
        return source.image(box, [section])[[list(names).index(stain) for stain in stains], 0]

    real = read(brain, brain.stains)
    ranges = pictures.display_ranges(real)
    images = {"real tissue": real} | {name: read(v, v.attributes.stains) for name, v in volumes.items()}
    shown = {
        name: _panel(pictures.composite(image, stains, ranges), brain.pixel_um, synthetic=name != "real tissue")
        for name, image in images.items()
    }
    across = min(ACROSS, len(shown))

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for panel in axes.ravel()[len(shown) :]:
            panel.set_visible(False)
        for panel, (name, picture) in zip(axes.ravel(), shown.items(), strict=False):
            panel.imshow(picture, interpolation="nearest")
            panel.set_title(name)
            panel.set_axis_off()

    absent = [name for name in paths if name not in volumes]
    caption = (
        f"The same region as each entry painted it ({', '.join(stains)}; section {section}, pixels {_words(box)}), all "
        "in the display range of the real tissue; of several seeds the first."
        + (f" Without a volume: {', '.join(absent)}." if absent else "")
    )
    return grid_figure("same_region", caption, -(-len(shown) // across), across, draw, (2.6, 2.75))


def _panel(picture: NDArray[np.uint8], pixel_um: float, *, synthetic: bool) -> NDArray[np.uint8]:
    large = pictures.resize(picture, PRINTED_PX)
    return pictures.finish("", large, pixel_um * len(picture) / len(large), "", "", synthetic=synthetic).rgb


def _words(box: Box) -> str:
    return f"y {box.y0}:{box.y1}, x {box.x0}:{box.x1}"
