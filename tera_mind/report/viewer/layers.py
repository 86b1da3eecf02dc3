"""What the viewer shows: brain stores, generated volumes and maps as layers on one canvas, and the page's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain
from tera_mind.formats.maps import Map
from tera_mind.formats.ome import CHUNK_PX, DAMAGE, open_level, pyramid_levels, read_window
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box

TILE_PX = CHUNK_PX
#: longest side of the pyramid level whose intensities set the first brightness window
GLANCE_PX = 1024


@dataclass(frozen=True)
class Layer:
    """A store as the viewer sees it.

    id: its name in addresses; kind: "real", "generated" or "map"; store: folder of the store; image: its multiscale
    group; box: canvas pixels covered; sections: canvas numbers, one a plane; levels: (height, width) of each pyramid
    level; step_px: canvas pixels a pixel of level 0; note: a few words on where it comes from.
    """

    id: str
    name: str
    kind: str
    store: Path
    image: Path
    box: Box
    sections: tuple[int, ...]
    channels: tuple[str, ...]
    levels: tuple[tuple[int, int], ...]
    pixel_um: float
    step_px: int = 1
    note: str = ""
    map: Map | None = None
    brain: Brain | None = None
    volume: Volume | None = None

    def to_json(self) -> dict[str, Any]:
        record = {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "box": [self.box.y0, self.box.y1, self.box.x0, self.box.x1],
            "sections": list(self.sections),
            "channels": list(self.channels),
            "levels": [list(shape) for shape in self.levels],
            "step_px": self.step_px,
            "note": self.note,
            "data": f"/data/{self.id}/{'' if self.image == self.store else self.image.name}",
        }
        if self.map is not None:
            attributes = self.map.attributes
            bounds = [list(attributes.bounds(channel)) for channel in range(len(attributes.channels))]
            record |= {"unit": attributes.unit, "ranges": bounds}
        return record


@dataclass(frozen=True)
class Scene:
    """Layers on one canvas: its size (pixels from 0, 0), its pixel size, its sections."""

    layers: tuple[Layer, ...]
    height: int
    width: int
    pixel_um: float
    sections: tuple[int, ...]

    def layer(self, name: str) -> Layer | None:
        """The layer with this id, or None."""
        return next((layer for layer in self.layers if layer.id == name), None)

    @property
    def brain(self) -> Brain | None:
        """The first brain store among the layers."""
        return next((layer.brain for layer in self.layers if layer.brain is not None), None)


def open_scene(paths: Sequence[Path]) -> Scene:
    """Open brain stores, volumes and maps as layers of one canvas, in the given order.

    Raises `MissingFileError` or `FormatError` for a path that is none of these, `InputError` when they do not
    belong on one canvas: other pixel sizes, canvases, or volumes of another brain.
    """
    layers: list[Layer] = []
    for path in paths:
        opened = _open(path)
        same = sum(layer.id.rpartition("~")[0] == opened.id or layer.id == opened.id for layer in layers)
        layers.append(opened if not same else _renamed(opened, same + 1))
    if all(layer.kind == "map" for layer in layers):
        raise InputError("expected at least one brain store or volume, got maps only; give the tissue that they lie on")
    first = layers[0]
    for layer in layers[1:]:
        if not np.isclose(layer.pixel_um, first.pixel_um, rtol=1e-6):
            raise InputError(
                f"all stores need one pixel size, {first.store.name} has {first.pixel_um:g} um and {layer.store.name} "
                f"{layer.pixel_um:g} um; show them in viewers of their own"
            )
    height, width = _canvas(layers)
    _check_origin(layers)
    sections = sorted({section for layer in layers for section in layer.sections})
    return Scene(tuple(layers), height, width, first.pixel_um, tuple(sections))


def _renamed(layer: Layer, number: int) -> Layer:
    facts = {name: getattr(layer, name) for name in layer.__dataclass_fields__}
    return Layer(**facts | {"id": f"{layer.id}~{number}", "name": f"{layer.name} ({number})"})


def _open(path: Path) -> Layer:
    if not path.exists():
        raise MissingFileError(f"expected a brain store, volume or map at {path}, nothing is there; check the path")
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs).get("tera_mind")
    except DAMAGE as error:
        raise FormatError(f"expected a zarr store at {path}, it is no readable zarr group ({error})") from None
    kind = attributes.get("format") if isinstance(attributes, dict) else None
    name = path.resolve().name.removesuffix(".zarr")
    if kind == "brain":
        brain = Brain.open(path)
        sections = tuple(range(len(brain.sections)))
        note = f"{_several(len(brain.genes), 'gene')}, {_several(len(sections), 'section')}"
        facts = (brain.canvas, sections, brain.stains, _levels(path / "images"), brain.pixel_um)
        return Layer(_slug(name), name, "real", path, path / "images", *facts, note=note, brain=brain)
    if kind == "volume":
        volume = Volume.open(path)
        a = volume.attributes
        note = f"genes {a.genes}, seed {a.seed}, {a.steps} steps"
        facts = (a.box, a.sections, a.stains, _levels(path), a.pixel_um)
        return Layer(_slug(name), name, "generated", path, path, *facts, note=note, volume=volume)
    if kind == "map":
        opened = Map.open(path)
        m = opened.attributes
        facts = (m.box, m.sections, m.channels, _levels(path), m.pixel_um)
        return Layer(_slug(name), m.name, "map", path, path, *facts, step_px=m.step_px, note=m.unit, map=opened)
    what = f"it is a {kind} store" if kind else "it was not written by tera-mind"
    raise FormatError(f"expected a brain store, volume or map at {path}, {what}; give one that `tera-mind` wrote")


def _several(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _levels(image: Path) -> tuple[tuple[int, int], ...]:
    shapes = [open_level(image, level).shape for level in range(pyramid_levels(image))]
    return tuple((shape[2], shape[3]) for shape in shapes)


def _slug(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name) or "layer"


def _canvas(layers: Sequence[Layer]) -> tuple[int, int]:
    """Size of the canvas: that of the brain, or what the volumes reach where no brain is given."""
    real = [layer for layer in layers if layer.brain is not None]
    if not real:
        return max(layer.box.y1 for layer in layers), max(layer.box.x1 for layer in layers)
    for layer in layers:
        same = layer.box == real[0].box if layer.brain is not None else real[0].box.contains(layer.box)
        if not same or not set(layer.sections) <= set(real[0].sections):
            raise InputError(
                f"{layer.store.name} covers box {layer.box} and sections {_span(layer.sections)}, which do not fit the "
                f"canvas {real[0].box} and sections {_span(real[0].sections)} of {real[0].store.name}; give stores of "
                "one brain"
            )
    return real[0].box.height, real[0].box.width


def _span(sections: Sequence[int]) -> str:
    return f"{min(sections)}..{max(sections)}"


def _check_origin(layers: Sequence[Layer]) -> None:
    """Volumes must come from the given brain, or all from the same one where none is given."""
    brains = {layer.brain.fingerprint: layer for layer in layers if layer.brain is not None}
    volumes = [layer for layer in layers if layer.volume is not None]
    expected = set(brains) or {layer.volume.attributes.brain_fingerprint for layer in volumes[:1] if layer.volume}
    for layer in volumes:
        source = layer.volume.attributes if layer.volume is not None else None
        if source is not None and source.brain_fingerprint not in expected:
            against = f"the given {next(iter(brains.values())).store.name}" if brains else volumes[0].store.name
            raise InputError(
                f"{layer.store.name} was painted from brain {source.brain} ({source.brain_fingerprint}), which does "
                f"not match {against} ({', '.join(sorted(expected))}); give stores of one brain"
            )


def manifest(scene: Scene, nuclei: dict[str, Any] | None) -> dict[str, Any]:
    """What the page needs to know, as plain JSON: canvas, sections, layers, stains with a first brightness window.

    `nuclei` (channel, levels, diameter_px) says for which stain outlines are served; None: for none.
    """
    brain = scene.brain
    sections = [
        {
            "number": number,
            "name": brain.sections[number].name if brain is not None else f"section {number}",
            "z_um": brain.sections[number].z_um if brain is not None else None,
        }
        for number in scene.sections
    ]
    images = [layer for layer in scene.layers if layer.kind != "map"]
    names = list(dict.fromkeys(channel for layer in images for channel in layer.channels))
    stains = [{"name": name, "window": _first_window(images, name)} for name in names]
    return {
        "version": __version__,
        "height": scene.height,
        "width": scene.width,
        "pixel_um": scene.pixel_um,
        "tile_px": TILE_PX,
        "sections": sections,
        "stains": stains,
        "layers": [layer.to_json() for layer in scene.layers],
        "nuclei": nuclei,
    }


def _first_window(images: Sequence[Layer], stain: str) -> list[int]:
    """Brightness window [low, high] of a stain: percentiles of a coarse level of the first layer that has it."""
    layer = next(layer for layer in images if stain in layer.channels)
    level = next((k for k, shape in enumerate(layer.levels) if max(shape) <= GLANCE_PX), len(layer.levels) - 1)
    array = open_level(layer.image, level)
    whole = read_window(array, Box(0, array.shape[2], 0, array.shape[3]), [0], 0)
    values = whole[layer.channels.index(stain), 0]
    shown = values[values > 0]
    if not shown.size:
        return [0, 255]
    low, high = np.percentile(shown, (1, 99.8))
    return [int(low * 0.5), int(min(255, max(high * 1.15, low + 16)))]
