"""The Allen deposit at the Brain Image Library: a folder a mouse, in it a MERSCOPE folder a section.

`<mouse>/<section>/merfish_output/cellpose_cyto2_nuclei/cellpose-detected_transcripts.csv` and mosaics in a folder
`images` somewhere in the section; both places can be set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tera_mind.errors import InputError, MissingFileError
from tera_mind.ingest.faults import Faults
from tera_mind.ingest.merscope import MerscopeReader
from tera_mind.ingest.source import SectionSource, by_number, option


@dataclass(frozen=True)
class BilReader:
    """Allen MERSCOPE deposit at the Brain Image Library: a mouse's folder of section folders."""

    EXAMPLE: ClassVar[str] = "tera-mind ingest bil 638850 --out brain.zarr --stains DAPI,PolyT --section-step 200"

    stains: tuple[str, ...] = option((), "stains to take (default: all)", "A,B")
    planes: str = option("max", "max: project all z planes; K: that plane with the transcripts of all", "max|K")
    transcripts: str = option(
        "merfish_output/cellpose_cyto2_nuclei/cellpose-detected_transcripts.csv",
        "transcript table in a section",
        "PATH",
    )
    images: str = option("", "image folder in a section (default: the one that holds mosaic_*)", "PATH")
    section_step: float = option(100.0, "distance between sections, in the order of their names", "UM")

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The sections of a mouse, or one section's; raises what `MerscopeReader` raises, all faults at once."""
        if self.planes != "max" and not self.planes.isdigit():
            raise InputError(f"a deposit's section is one section: planes are 'max' or a number, got {self.planes!r}")
        if not folder.is_dir():
            raise MissingFileError(f"expected a mouse's folder at {folder}, nothing is there")
        found: list[SectionSource] = []
        faults = Faults()
        for index, section in enumerate(self._folders(folder)):
            with faults.catching(section):
                reader = MerscopeReader(
                    planes=self.planes,
                    stains=self.stains,
                    transcripts=self.transcripts,
                    images=self.images or _images(section),
                )
                found += reader.sections(section, z_um + index * self.section_step)
        faults.raise_any()
        return found

    def _folders(self, folder: Path) -> list[Path]:
        """Sections by the numbers in their names: folders in which the way to the transcripts begins."""
        if (folder / self.transcripts).is_file():
            return [folder]
        head = Path(self.transcripts).parts[0]  # a section that lost its table is to be missed, not passed over
        sections = [path for path in folder.iterdir() if path.is_dir() and (path / head).exists()]
        if not sections:
            raise MissingFileError(f"expected SECTION/{self.transcripts} in {folder}, found none (--transcripts)")
        return sorted(sections, key=lambda path: by_number(path.name))


def _images(section: Path) -> str:
    """The folder of mosaics, relative to the section's."""
    found = sorted({path.parent for path in section.rglob("mosaic_*.tif*")})
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(section)) for path in found) or "none"
        raise MissingFileError(f"expected one folder with mosaic_STAIN_zK.tif in {section}, found {listed} (--images)")
    return str(found[0].relative_to(section))
