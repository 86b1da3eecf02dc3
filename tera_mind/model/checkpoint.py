"""What a checkpoint holds besides weights, and reading one: plain data only, no pickled classes.

A checkpoint is a Lightning one whose key `tera_mind` describes everything generation needs. Weights for generation
lie under `state_dict` with the prefix `network.` (the moving average, where training kept one).
"""

from __future__ import annotations

import hashlib
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError
from tera_mind.model.config import BlockConfig, Prediction
from tera_mind.model.methods import TERA_MIND, method_named
from tera_mind.model.unet import GeneMorphUNet

VERSION = 1
_PREFIX = "network."


@dataclass(frozen=True)
class CheckpointInfo:
    """Method, shape of the network and what its inputs and outputs mean."""

    model: BlockConfig
    #: what the network's output is; "x0", the image, for a network that paints without steps
    prediction: Prediction
    genes: tuple[str, ...]
    stains: tuple[str, ...]
    pixel_um: float
    #: raw value of 0 and of 255, a stain
    intensity_range: dict[str, tuple[float, float]]
    #: name of the method that the network belongs to (`tera_mind.model.methods`)
    method: str = TERA_MIND

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": "checkpoint",
            "version": VERSION,
            "method": self.method,
            "model": self.model.to_dict(),
            "prediction": self.prediction,
            "genes": list(self.genes),
            "stains": list(self.stains),
            "pixel_um": self.pixel_um,
            "intensity_range": {stain: list(limits) for stain, limits in self.intensity_range.items()},
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> CheckpointInfo:
        method = values.get("method", TERA_MIND)  # checkpoints written before there were others do not say
        return CheckpointInfo(
            method=method,
            model=method_named(method).config.from_dict(values["model"]),
            prediction=values["prediction"],
            genes=tuple(values["genes"]),
            stains=tuple(values["stains"]),
            pixel_um=float(values["pixel_um"]),
            intensity_range={stain: (low, high) for stain, (low, high) in values["intensity_range"].items()},
        )

    def require_same_inputs(self, other: CheckpointInfo) -> None:
        """Raise `PanelMismatchError` unless the other has the same method, genes, stains, shape and prediction."""
        if self.method != other.method:
            raise PanelMismatchError(
                f"the starting checkpoint holds a {self.method} network, the settings ask for {other.method}: "
                f"start from a checkpoint of {other.method}, or train from scratch"
            )
        if self.genes != other.genes:
            missing = [gene for gene in other.genes if gene not in set(self.genes)]
            words = f"missing {', '.join(missing[:8])}" if missing else "same genes, other order or extra ones"
            raise PanelMismatchError(
                f"the starting checkpoint has {len(self.genes)} genes, the data {len(other.genes)} ({words}); "
                "start from a checkpoint of this panel or train from scratch"
            )
        if self.stains != other.stains or self.model != other.model:
            raise PanelMismatchError(
                f"the starting checkpoint has stains {', '.join(self.stains)} and network {self.model}, "
                f"the data and settings ask for {', '.join(other.stains)} and {other.model}"
            )
        if self.prediction != other.prediction:
            raise PanelMismatchError(
                f"the starting checkpoint predicts {self.prediction}, the settings ask for {other.prediction}: "
                f"set model.prediction to {self.prediction}, or train from scratch"
            )


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with its description; `sha256` identifies the file."""

    info: CheckpointInfo
    #: a `BlockNetwork`, or a `Painter` for methods that paint without steps
    network: nn.Module
    sha256: str
    path: Path

    @property
    def gene_morph(self) -> GeneMorphUNet:
        """The network of a Tera-MIND checkpoint; `InputError` for one of another method."""
        if not isinstance(self.network, GeneMorphUNet):
            raise InputError(
                f"{self.path} holds a {self.info.method} network; this is for {TERA_MIND} checkpoints alone"
            )
        return self.network


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of this project, on the CPU, float32.

    Raises `MissingFileError`, or `FormatError` where the file is damaged, foreign or of an unknown version.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint at {path}: give a .ckpt file written by `tera-mind fit`")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to run what the file holds
        raise FormatError(f"{path} cannot be read as a checkpoint: it is damaged, or not plain data") from error
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error, OSError) as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path} cannot be read as a checkpoint: {words}") from error
    if not isinstance(content, dict) or "tera_mind" not in content:
        raise FormatError(
            f"{path} is no checkpoint of tera-mind; for a published one run `tera-mind import-checkpoint` first"
        )
    values = content["tera_mind"]
    if values.get("version") != VERSION:
        raise FormatError(f"{path} has checkpoint version {values.get('version')}; this release reads {VERSION}")
    try:
        info = CheckpointInfo.from_dict(values)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path} describes its network in a way that cannot be read: {error!r}") from error
    network = method_named(info.method).network(info.model)
    state: dict[str, Tensor] = {
        name.removeprefix(_PREFIX): value.float()
        for name, value in content.get("state_dict", {}).items()
        if name.startswith(_PREFIX)
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise FormatError(f"the weights of {path} do not fit its own description: {error}") from error
    return Checkpoint(info, network.eval(), hashlib.sha256(path.read_bytes()).hexdigest(), path)


def checkpoint_content(info: CheckpointInfo, network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What to `torch.save` for a network that was not trained by Lightning here."""
    state = {_PREFIX + name: value.detach().to(dtype).cpu() for name, value in network.state_dict().items()}
    return {"tera_mind": info.to_dict(), "state_dict": state}
