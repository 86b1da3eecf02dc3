"""Tissue as pictures: stains to colours, scale bars, outlines, and the burnt-in word on everything generated.

All functions take and return uint8 arrays; a picture is (y, x, 3). They never change their input.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tera_mind.geometry import Box

#: what every generated picture says about itself, in its pixels
STAMP = "SYNTHETIC"
GREY = (255, 255, 255)
STAIN_COLOURS = {"DAPI": (95, 145, 255), "PolyT": (60, 205, 95)}
OTHER_COLOURS = ((255, 110, 200), (255, 190, 70), (120, 230, 230))
#: the font that matplotlib ships: the same letters, micron sign included, on every machine
FONT = str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
OUTLINE = (255, 176, 46)

#: lowest and highest displayed value of a stain
Range = tuple[float, float]
#: reads (stain, y, x) uint8 of one section in canvas pixels
Reader = Callable[[Box], NDArray[np.uint8]]


@dataclass(frozen=True)
class Picture:
    """A finished picture: `name` names its file, `alt` says what is seen, `label` stands above it."""

    name: str
    rgb: NDArray[np.uint8]
    label: str
    alt: str
    synthetic: bool = False

    def png(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.rgb).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    @property
    def uri(self) -> str:
        """The picture as a data URI: JPEG without chroma subsampling, so that outlines keep their colour."""
        buffer = io.BytesIO()
        Image.fromarray(self.rgb).save(buffer, "JPEG", quality=90, subsampling=0)
        return data_uri(buffer.getvalue(), "jpeg")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def read_reduced(read: Reader, box: Box, longest_px: int) -> tuple[NDArray[np.uint8], int]:
    """A box of any size as (stain, y, x) of at most about `longest_px` a side, and the factor of reduction.

    Means over factor x factor pixels, read in bands, so memory stays bounded; a rim below one factor is cut.
    """
    factor = max(1, -(-max(box.height, box.width) // longest_px))
    if factor == 1:
        return read(box), 1
    height, width = box.height // factor * factor, box.width // factor * factor
    inner, bands = Box(box.y0, box.y0 + height, box.x0, box.x0 + width), []
    for band in inner.tiles(64 * factor, max(width, 1)):
        image = read(band)
        stains = image.shape[0]
        pooled = image.reshape(stains, band.height // factor, factor, band.width // factor, factor).mean((2, 4))
        bands.append(np.rint(pooled).astype(np.uint8))
    return np.concatenate(bands, axis=1), factor


def display_ranges(real: NDArray[np.uint8]) -> list[Range]:
    """A stain's 1st and 99.7th percentile in a real image (stain, y, x); every picture is shown in these."""
    ranges = []
    for stain in real:
        low, high = np.percentile(stain, [1, 99.7])
        ranges.append((float(low), float(max(high, low + 1))))
    return ranges


def composite(image: NDArray[np.uint8], stains: Sequence[str], ranges: Sequence[Range]) -> NDArray[np.uint8]:
    """Stains (stain, y, x) to one picture: grey when alone, otherwise DAPI blue, PolyT green, added up.

    Where DAPI is bright the others are dimmed, so that nuclei stay blue inside bright cells.
    """
    picture = np.zeros((*image.shape[1:], 3), np.float32)
    others = iter(OTHER_COLOURS * (len(stains) // len(OTHER_COLOURS) + 1))
    # DAPI last: it covers
    for stain, values, (low, high) in sorted(zip(stains, image, ranges, strict=True), key=lambda s: s[0] == "DAPI"):
        colour = GREY if len(stains) == 1 else STAIN_COLOURS.get(stain) or next(others)
        shown = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)[..., None]
        picture *= 1 - 0.75 * shown if stain == "DAPI" else 1
        picture += shown * np.asarray(colour, np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def difference(generated: NDArray[np.uint8], real: NDArray[np.uint8], shown: Range) -> NDArray[np.uint8]:
    """One stain's generated - real, both (y, x): white equal, red generated brighter, blue darker; full colour
    at the displayed range's width.
    """
    scaled = (generated.astype(np.float32) - real.astype(np.float32)) / (shown[1] - shown[0])
    colours = mpl.colormaps["RdBu_r"](np.clip(scaled / 2 + 0.5, 0, 1))
    return (colours[..., :3] * 255).astype(np.uint8)


def resize(picture: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    """Enlarge (never shrink) so that the longest side is about `longest_px`, by a whole factor and nearest pixel:
    an interpolated picture would hide what the generator really drew.
    """
    factor = max(1, round(longest_px / max(picture.shape[:2])))
    return picture.repeat(factor, 0).repeat(factor, 1)


def outline(picture: NDArray[np.uint8], labels: NDArray[np.int32], factor: int) -> NDArray[np.uint8]:
    """Enlarge by `factor` and draw the inner border of every label (y, x), one output pixel wide."""
    large = labels.repeat(factor, 0).repeat(factor, 1)
    edge = np.zeros(large.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            neighbour = np.roll(large, step, axis)
            edge |= (large != neighbour) & (large > 0)
    drawn = picture.repeat(factor, 0).repeat(factor, 1)
    drawn[edge] = OUTLINE
    return drawn


def font_px(picture: NDArray[np.uint8]) -> int:
    return int(np.clip(min(picture.shape[:2]) / 26, 8, 24))


def _text(draw: ImageDraw.ImageDraw, corner: tuple[float, float], words: str, size: int, anchor: str) -> None:
    """Small white letters on a dark, half-transparent plate."""
    font = ImageFont.truetype(FONT, size)
    pad = max(2, size // 4)
    left, top, right, bottom = draw.textbbox(corner, words, font=font, anchor=anchor)
    draw.rectangle((left - pad, top - pad, right + pad, bottom + pad), fill=(10, 12, 16, 170))
    draw.text(corner, words, font=font, fill=(255, 255, 255, 255), anchor=anchor)


def _drawn(picture: NDArray[np.uint8], paint: Callable[[ImageDraw.ImageDraw, int, int], None]) -> NDArray[np.uint8]:
    base = Image.fromarray(picture).convert("RGBA")
    layer = Image.new("RGBA", base.size, (0, 0, 0, 0))
    paint(ImageDraw.Draw(layer), base.width, base.height)
    return np.asarray(Image.alpha_composite(base, layer).convert("RGB")).copy()


def stamp(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Burn the word SYNTHETIC into the lower right corner."""
    size = font_px(picture)

    def paint(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        _text(draw, (width - size * 0.8, height - size * 0.8), STAMP, size, "rs")

    return _drawn(picture, paint)


def bar_length_um(width_um: float) -> float:
    """The longest of 1, 2, 5, 10, 20, 50, ... um within a quarter of the picture's width."""
    limit = width_um / 4
    steps = [m * 10.0**e for e in range(-3, 7) for m in (1, 2, 5)]
    return max((s for s in steps if s <= limit), default=steps[0])


def scale_bar(picture: NDArray[np.uint8], um_per_px: float) -> NDArray[np.uint8]:
    """Burn a scale bar with its length in microns into the lower left corner."""
    size, length = font_px(picture), bar_length_um(picture.shape[1] * um_per_px)
    words = f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"

    def paint(draw: ImageDraw.ImageDraw, _: int, height: int) -> None:
        x, y, thick = size * 0.8, height - size * 0.8, max(2, size // 5)
        end = x + length / um_per_px
        _text(draw, ((x + end) / 2, y - thick - size * 0.45), words, size, "ms")
        draw.rectangle((x - 1, y - thick - 1, end + 1, y + 1), fill=(10, 12, 16, 170))
        draw.rectangle((x, y - thick, end, y), fill=(255, 255, 255, 255))

    return _drawn(picture, paint)


def frames(picture: NDArray[np.uint8], boxes: Sequence[tuple[str, Box]]) -> NDArray[np.uint8]:
    """Draw named boxes, given in the picture's own pixels."""
    size = font_px(picture)

    def paint(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        for name, box in boxes:
            corners = (box.x0, box.y0, min(box.x1, width) - 1, min(box.y1, height) - 1)
            draw.rectangle(corners, outline=(*OUTLINE, 255), width=max(1, size // 8))
            if name:
                _text(draw, (box.x0 + size * 0.5, box.y0 + size * 0.5), name, size, "lt")

    return _drawn(picture, paint)


def finish(name: str, rgb: NDArray[np.uint8], um_per_px: float, label: str, alt: str, *, synthetic: bool) -> Picture:
    """The only way to a `Picture` in the report: scale bar on all, the stamp on everything generated."""
    rgb = scale_bar(rgb, um_per_px)
    if synthetic:
        rgb, alt = stamp(rgb), f"{alt} (synthetic)"
    return Picture(name, rgb, label, alt, synthetic)
