"""The methods there are: name -> shape and network, so that a checkpoint of any of them can be read.

Tera-MIND is there from the start; the package `tera_mind.baselines` adds its own as it is imported, which
`tera_mind.module` and `tera_mind.sampling` do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tera_mind.errors import FormatError
from tera_mind.model.config import BlockConfig, ModelConfig
from tera_mind.model.unet import GeneMorphUNet

TERA_MIND = "tera-mind"


@dataclass(frozen=True)
class Method:
    """Name as checkpoints and `--method` spell it, its configuration, and its network made from one."""

    name: str
    config: type[BlockConfig]
    network: Callable[[Any], nn.Module]


_METHODS = {TERA_MIND: Method(TERA_MIND, ModelConfig, GeneMorphUNet)}


def register(method: Method) -> None:
    """Make a method known; a name belongs to one method for good."""
    if method.name in _METHODS:
        raise ValueError(f"there is a method {method.name!r} already")
    _METHODS[method.name] = method


def method_named(name: str) -> Method:
    """`FormatError` naming those there are where the method is unknown."""
    if name not in _METHODS:
        raise FormatError(f"unknown method {name!r}; this release knows {', '.join(_METHODS)}")
    return _METHODS[name]


def parameter_count(network: nn.Module) -> int:
    """Weights that training changes."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


class MethodNetwork(nn.Module):
    """Base of the baselines' networks: what samplers and painters ask for comes from the configuration."""

    config: BlockConfig

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def patch_px(self) -> int:
        return self.config.patch_px

    @property
    def bin_px(self) -> int:
        return self.config.bin_px

    @property
    def halo_px(self) -> int:
        return self.config.halo_px

    @property
    def channels(self) -> int:
        return self.config.image_channels

    @property
    def tile_exact(self) -> bool:
        return self.config.tile_exact
