"""Patch-DM (Ding et al., "Patched Denoising Diffusion Models For High-Resolution Image Synthesis", ICLR 2024).

Patches on a grid shifted by half a patch are encoded by themselves; their features are put together and cut half a
patch later, and those pieces are decoded: neighbours share features, so tiles have no borders, exactly. Adapted to
genes as in the paper of Tera-MIND (arXiv 2503.01220): its UNet without gene-gene attention, a gene pyramid
concatenated in the decoder only, plain spatial self-attention; no position or semantic code. The loss is that of
both decodings, in place and half a patch later.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tera_mind.baselines.genes import CountPyramid
from tera_mind.baselines.unet import ConditionalUNet, UNetConfig
from tera_mind.model import collage
from tera_mind.model.methods import Method, MethodNetwork, register


@dataclass(frozen=True)
class PatchDMConfig(UNetConfig):
    """A UNet on small patches that reads half of each neighbour."""

    @property
    def halo_px(self) -> int:
        return self.patch_px // 2

    @property
    def tile_exact(self) -> bool:
        return True


class PatchDM(MethodNetwork):
    """A `BlockNetwork`, trained on groups of 2 x 2 patches."""

    config: PatchDMConfig

    def __init__(self, config: PatchDMConfig) -> None:
        super().__init__(config)
        self.pyramid = CountPyramid(config, config.pyramid_channels, config.count_transform)
        self.unet = ConditionalUNet(config, config.stains, encoder_genes=False, flat=False)

    def _paths(
        self,
        x: Float[Tensor, "n c p p"],
        t: Integer[Tensor, " g"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        rows: int,
        columns: int,
        *,
        patch_path: bool,
    ) -> tuple[Float[Tensor, "n c p p"] | None, Float[Tensor, "out c p p"]]:
        """Decoded in place, and half a patch later, for g regions of (rows + 1) x (columns + 1) patches each."""
        embedding = self.unet.time(t)
        each = embedding.repeat_interleave((rows + 1) * (columns + 1), 0)
        genes = self.pyramid(counts)
        h, skips = self.unet.encode(x.unflatten(1, (self.config.stains, self.config.sections)), each, genes)
        patches = self.unet.decode(h, skips, each, genes) if patch_path else None

        def shifted(features: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b2 c z y2 x2"]:
            return collage.reassemble(features, rows, columns, margin=0)

        later = self.unet.decode(
            shifted(h),
            [shifted(skip) for skip in skips],
            embedding.repeat_interleave(rows * columns, 0),
            [shifted(level) for level in genes],
        )
        return patches, later

    def forward(
        self,
        x: Float[Tensor, "b4 c p p"],
        t: Integer[Tensor, " b"],
        counts: Float[Tensor, "b4 gene section bin_y bin_x"],
        *,
        patch_path: bool = True,
    ) -> tuple[Float[Tensor, "b4 c p p"] | None, Float[Tensor, "b c p p"]]:
        """Both paths on groups of 2 x 2 patches, order (sample, row, column); see `DualPathNetwork`."""
        return self._paths(x, t, counts, 1, 1, patch_path=patch_path)

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y2 x2"]:
        """Half-shifted patches encoded, decoded half a patch later (see `BlockNetwork`)."""
        side, weight = self.patch_px, self.unet.head.weight
        rows, columns = window.shape[-2] // side - 1, window.shape[-1] // side - 1
        _, later = self._paths(
            collage.to_patches(window, side).to(weight),
            t.to(weight.device),
            collage.counts_to_patches(counts, self.config.bins).to(weight),
            rows,
            columns,
            patch_path=False,
        )
        out = collage.from_patches(later, rows, columns)
        return out.to(torch.promote_types(out.dtype, torch.float32))


register(Method("patch-dm", PatchDMConfig, PatchDM))
