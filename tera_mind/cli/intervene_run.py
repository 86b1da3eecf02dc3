"""One run of `tera-mind intervene`: what is painted, at which strengths, into which files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tera_mind.errors import InputError

if TYPE_CHECKING:
    from tera_mind.analysis.interventions.intervention import Intervention
    from tera_mind.analysis.interventions.population import Basis
    from tera_mind.effects.zones import Zones
    from tera_mind.sampling.job import Generation

#: what the command writes into its folder
SUMMARY, MAP, FILMSTRIP, FILM, POPULATIONS = "summary.json", "change.zarr", "filmstrip.png", "film.gif", "populations"

#: what latent scores may compare
FEATURES = ("pyramid", "bottleneck")


@dataclass(frozen=True)
class Run:
    """An intervention with everything that was opened for it; measured: populations that are not kept in `out` yet."""

    job: Generation
    intervention: Intervention
    strengths: tuple[float, ...]
    zones: Zones
    out: Path
    measured: Mapping[str, Basis] = field(default_factory=dict)

    def at(self, strength: float) -> Generation:
        """The job at a strength; strength 0 is the factual one, without any edit."""
        return replace(self.job, edit=self.intervention.at(strength) if strength > 0 else None)

    def path(self, strength: float) -> Path:
        return volume_path(self.out, strength)


def volume_path(out: Path, strength: float) -> Path:
    return out / "volumes" / f"strength_{strength:g}.zarr"


def nuclear_stain(stains: Sequence[str]) -> str:
    """The stain whose nuclei are counted: DAPI where there is one, else the first."""
    named = {stain.lower(): stain for stain in stains}
    return named.get("dapi") or stains[0]


def stain_place(stains: Sequence[str], wanted: str, what: str) -> int:
    """Position of a stain by its name, whatever its case. Raises `InputError` where `what` lacks it."""
    names = [stain.lower() for stain in stains]
    if wanted.lower() not in names:
        raise InputError(f"nuclei are counted in stain {wanted} of --brain, {what} has {', '.join(stains)}")
    return names.index(wanted.lower())
