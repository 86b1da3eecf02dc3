"""Nuclei by Cellpose 3 with weights from a file (Stringer et al., Nature Methods 18, 2021): the extra `cellpose`.

Given a name instead of a file, or a file that is not there, Cellpose downloads weights of its own choice, and it loads
a file of other weights without a word, leaving its network at random. So file and weights are checked here before
Cellpose is asked for anything, and its size model, another download, is never used: the diameter is given.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.metrics.nuclei.watershed import Image, Labels, Scale, grey_histogram

#: side of the tiles that the network sees, in pixels of its own scale
_TILE_PX = 224
_PERCENTILES = (0.01, 0.99)
#: typical nucleus in the pixels of Cellpose's own `nuclei` weights, whose file does not say
_BUILTIN_NUCLEI = ("nucleitorch_0", 17.0)


@dataclass(frozen=True)
class Cellpose:
    """Cellpose 3 with the weights in the file `model`, on nuclei of typical `diameter_um`.

    Grey levels are scaled by the 1st and 99th percentile of the real image's windows. The network sees overlapping
    tiles of 224 px at its own scale, laid out from the corner of the image it is given, and looks at each tile's mean
    style, so nuclei of a block need not be those of the whole image to the pixel, whatever the halo: compare figures
    that were measured with the same blocks. Runs on the CPU. Raises `MissingFileError` without the file, `InputError`
    without the package, `FormatError` where the file holds no Cellpose 3 weights; never downloads anything.
    """

    model: Path
    pixel_um: float
    diameter_um: float = 8.0

    def __post_init__(self) -> None:
        if not (self.pixel_um > 0 and self.diameter_um > 0):
            raise InputError(
                f"pixel size and nucleus diameter must be above 0 um, got {self.pixel_um:g} and {self.diameter_um:g}"
            )
        if not self.model.is_file():
            raise MissingFileError(
                f"no Cellpose weights at {self.model}: expected a file that you have downloaded, none is fetched"
            )
        if importlib.util.find_spec("cellpose") is None:
            raise InputError(
                "segmenting with Cellpose needs the package cellpose 3.1.1.3, which is not installed: "
                "pip install 'tera-mind[cellpose]', or leave Cellpose out"
            )
        _check_weights(self.model)

    @property
    def name(self) -> str:
        return "cellpose"

    @property
    def halo_px(self) -> int:
        """A tile of the network and two nuclei."""
        network_px = _TILE_PX * self.diameter_um / self.pixel_um / _network_diameter(self.model)
        return math.ceil(network_px / 2 + 2 * self.diameter_um / self.pixel_um)

    def settings(self) -> dict[str, Any]:
        with self.model.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"segmenter": self.name, "model": self.model.name, "sha256": digest, "diameter_um": self.diameter_um}

    def calibrate(self, images: Iterable[Image]) -> Scale:
        """1st and 99th percentile of the pooled windows; equal ones are set a grey level apart."""
        counts = grey_histogram(images).cumsum()
        low, high = (float(np.searchsorted(counts, share * counts[-1])) for share in _PERCENTILES)
        return Scale(low, max(high, low + 1))

    def segment(self, image: Image, scale: Scale) -> Labels:
        labels, _, _ = _network(self.model).eval(
            image,
            channels=[0, 0],
            diameter=self.diameter_um / self.pixel_um,
            normalize={"lowhigh": [scale.low, scale.high]},
            tile_overlap=0.25,
        )
        return np.asarray(labels, np.int32)


@lru_cache(maxsize=1)
def _weights(model: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights."""
    try:
        state = torch.load(model, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"Cellpose weights {model} cannot be read ({first}): download them again") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FormatError(f"{model} holds no weights by name: expected weights of Cellpose 3")
    return state


def _check_weights(model: Path) -> None:
    """All of the network's weights, in its shapes, must be in the file."""
    from cellpose.resnet_torch import CPnet

    expected = CPnet([2, 32, 64, 128, 256], 3, sz=3).state_dict()
    state = _weights(model)
    wrong = [name for name, value in expected.items() if name not in state or state[name].shape != value.shape]
    # as Cellpose does: files of old releases do not hold their diameters
    wrong = [name for name in wrong if name not in {"diam_mean", "diam_labels"}]
    if wrong:
        raise FormatError(
            f"{model} holds no weights of Cellpose 3: {len(wrong)} of {len(expected)} are missing or of another shape, "
            f"such as {wrong[0]}; weights of Cellpose 4 do not fit"
        )


def _network_diameter(model: Path) -> float:
    """Diameter that nuclei have in the network's own pixels."""
    name, diameter = _BUILTIN_NUCLEI
    if model.name.endswith(name):
        return diameter
    state = _weights(model)
    return float(state["diam_mean"]) if "diam_mean" in state else 30.0


@lru_cache(maxsize=1)
def _network(model: Path) -> Any:
    """The network with its weights, loaded once a process."""
    from cellpose.models import CellposeModel

    logging.getLogger("cellpose").setLevel(logging.WARNING)
    return CellposeModel(gpu=False, pretrained_model=str(model))
