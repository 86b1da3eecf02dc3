"""Latent scores of `tera-mind intervene`: source, edited and target tissue in the features of the network itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tera_mind.analysis.latents import bottleneck_features, pyramid_features
from tera_mind.cli.intervene_run import stain_place
from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.effects import latent
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling.counts import count_source, panel_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tera_mind.cli.intervene_run import Run
    from tera_mind.formats.volume import Volume
    from tera_mind.sampling.job import Generation


def latent_scores(
    made: Run, volumes: Mapping[float, Volume], target: Brain | None, features: str, lines: list[str]
) -> dict[str, Any]:
    """Frechet and GILEA scores of the edited patches, and whether their genes are out of bounds, with words in `lines`.

    features: "pyramid" of the genes alone, or "bottleneck" of the encoder, which sees genes and noise-free image:
    generated ones of source and edited, the real one of the target. None of it for methods without a gene pyramid.
    """
    job, zones = made.job, made.zones
    network = job.checkpoint.network
    if not isinstance(network, GeneMorphUNet):
        lines.append(f"latent scores: none, a {job.checkpoint.info.method} network has no gene pyramid")
        return {"latent": None, "out_of_distribution": None}

    genes = partial(pyramid_features, network.pyramid)

    def encoded(counts: torch.Tensor, images: torch.Tensor) -> NDArray[Any]:
        return bottleneck_features(network, images, counts)

    source: latent.GroupCounts = lambda group, box: job.counts(group)(box)  # noqa: E731
    edited: latent.GroupCounts = lambda group, box: made.at(1.0).counts(group)(box)  # noqa: E731
    populations: dict[str, tuple[latent.GroupCounts, latent.GroupImage]] = {
        "source": (source, partial(_image, volumes[0.0], job)), "edited": (edited, partial(_image, volumes[1.0], job)),
    }  # fmt: skip
    if target is not None:
        populations["target"] = (partial(_target_counts, target, job), partial(_image, target, job))
    sums = {}
    for name, (counts, image) in populations.items():
        if features == "bottleneck":
            rows = latent.rows_of(counts, encoded, job.groups, zones, inside=True, image=image)
        else:
            rows = latent.rows_of(counts, genes, job.groups, zones, inside=True)
        sums[name] = latent.sums_of(rows)
    found: dict[str, Any] = {"features": features, "latent": latent.scores(sums), "out_of_distribution": None}
    for name, score in found["latent"].items():
        gilea = ", ".join(f"{k}: {v:.3g}" for k, v in score["gilea"].items() if v is not None)
        frechet = "too few patches" if score["frechet"] is None else f"{score['frechet']:.4g}"
        lines.append(f"{features} features, {name}: Frechet {frechet}; GILEA {gilea} ({score['patches']} patches)")

    def of_genes(counts: latent.GroupCounts, *, inside: bool) -> Iterator[NDArray[Any]]:
        return latent.rows_of(counts, genes, job.groups, zones, inside=inside)

    spread = latent.spread_of(lambda: of_genes(source, inside=False))
    strange = (
        None
        if spread is None
        else latent.strangeness(spread, of_genes(source, inside=True), of_genes(edited, inside=True))
    )
    if strange is not None:
        found["out_of_distribution"] = asdict(strange) | {"flagged": strange.flagged}
        words = "OUT OF DISTRIBUTION, do not believe the picture" if strange.flagged else "within what the brain holds"
        lines.append(
            f"edited genes: {words}: {strange.share_after:.1%} of edited patches beyond the brain's own 99.5 % "
            f"(before: {strange.share_before:.1%})"
        )
    return found


def _target_counts(target: Brain, job: Generation, group: SectionGroup, box: Box) -> torch.Tensor:
    model = job.checkpoint.info.model
    index = panel_index(target.genes, job.checkpoint.info.genes, allow_missing=job.allow_missing_genes)
    return count_source(
        target, group.genes, index, job.region, patch_px=model.patch_px, bin_px=model.bin_px, treatment="as measured",
        seed=0,
    )(box)  # fmt: skip


def _image(source: Brain | Volume, job: Generation, group: SectionGroup, box: Box) -> torch.Tensor:
    """A section group of a volume or brain as the network is trained on it: (stain * section, y, x) in [-1, 1].

    Sections that were not generated are background, in the target's real image too, so that populations differ in
    nothing else.
    """
    stains = source.stains if isinstance(source, Brain) else source.attributes.stains
    places = [stain_place(stains, stain, str(source.path)) for stain in job.checkpoint.info.stains]
    out = torch.full((len(places), len(group.image), box.height, box.width), OUTSIDE)
    for number, section in enumerate(group.image):
        if section in job.sections:
            plane = source.image(box, [section])[places, 0]
            out[:, number] = torch.from_numpy(plane).float() / 127.5 - 1
    return out.flatten(0, 1)
