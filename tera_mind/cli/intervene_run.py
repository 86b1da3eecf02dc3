"""One run of `tera-mind intervene`: what is painted, at which strengths, into which files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tera_mind.analysis.interventions.intervention import Intervention
    from tera_mind.effects.zones import Zones
    from tera_mind.sampling.job import Generation

#: what the command writes into its folder
SUMMARY, MAP, FILMSTRIP, FILM, POPULATIONS = "summary.json", "change.zarr", "filmstrip.png", "film.gif", "populations"


@dataclass(frozen=True)
class Run:
    """An intervention with everything that was opened for it."""

    job: Generation
    intervention: Intervention
    strengths: tuple[float, ...]
    zones: Zones
    out: Path

    def at(self, strength: float) -> Generation:
        """The job at a strength; strength 0 is the factual one, without any edit."""
        return replace(self.job, edit=self.intervention.at(strength) if strength > 0 else None)

    def path(self, strength: float) -> Path:
        return self.out / "volumes" / f"strength_{strength:g}.zarr"
