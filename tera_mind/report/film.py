"""A trajectory of generated volumes as a filmstrip (PNG) and a moving picture (GIF), every frame stamped synthetic."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.report.pictures import (
    FONT,
    composite,
    difference,
    display_ranges,
    outline,
    read_reduced,
    scale_bar,
    stamp,
)

#: longest side of a frame, and milliseconds that it is shown
_FRAME_PX, _FRAME_MS = 420, 600
_GAP_PX, _TITLE_PX = 6, 22


def film_frames(
    volumes: Sequence[Volume], titles: Sequence[str], section: int, box: Box, edited: NDArray[np.bool_]
) -> list[NDArray[np.uint8]]:
    """One picture (y, x, 3) a volume of a section, all in the colours of the first; `edited` (y, x) is outlined.

    The last picture is what the last volume has more (red) or less (blue) of in its first stain than the first one.
    """
    planes, factor = [], 1
    for volume in volumes:

        def read(part: Box, own: Volume = volume) -> NDArray[np.uint8]:
            return own.image(part, [section])[:, 0]

        plane, factor = read_reduced(read, box, _FRAME_PX)
        planes.append(plane)
    first, stains = volumes[0].attributes, volumes[0].attributes.stains
    ranges = display_ranges(planes[0])
    pictures = [composite(plane, stains, ranges) for plane in planes]
    pictures.append(difference(planes[-1][0], planes[0][0], ranges[0]))
    height, width = pictures[0].shape[:2]
    labels = edited[::factor, ::factor][:height, :width].astype(np.int32)
    zoom = max(1, round(_FRAME_PX / max(height, width)))
    named = zip(pictures, [*titles, f"{stains[0]}, {titles[-1]} less {titles[0]}"], strict=True)
    return [
        _titled(stamp(scale_bar(outline(picture, labels, zoom), first.pixel_um * factor / zoom)), title)
        for picture, title in named
    ]


def _titled(picture: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    head = Image.new("RGB", (picture.shape[1], _TITLE_PX), "white")
    ImageDraw.Draw(head).text((4, 3), title, fill=(34, 38, 46), font=ImageFont.truetype(FONT, 13))
    return np.concatenate([np.asarray(head), picture])


def filmstrip(made: Sequence[NDArray[np.uint8]]) -> bytes:
    """Frames side by side, as PNG."""
    gap = np.full((made[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    parts = [part for frame in made for part in (frame, gap)][:-1]
    return _saved(np.concatenate(parts, axis=1))


def moving(made: Sequence[NDArray[np.uint8]]) -> bytes:
    """Frames forth and back, as an endless GIF; give it those of the volumes alone."""
    images = [Image.fromarray(frame) for frame in [*made, *made[-2:0:-1]]]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=_FRAME_MS, loop=0)
    return buffer.getvalue()


def _saved(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
