"""One list of genes for all sections of a brain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tera_mind.errors import InputError

RULES = ("same", "shared", "all")
#: a gene counts as missing from a section when at least so many transcripts were to be expected there
_EXPECTED = 20.0
#: names that are shown of many
_SHOWN = 5


@dataclass(frozen=True)
class SectionGenes:
    """Transcripts a gene in one section, and the genes that its files declare (None: only the observed are known)."""

    section: str
    counts: Mapping[str, int]
    declared: tuple[str, ...] | None

    @property
    def names(self) -> set[str]:
        return set(self.counts) | set(self.declared or ())


def check_rule(rule: str) -> None:
    """Raise `InputError` for a rule that there is not."""
    if rule not in RULES:
        raise InputError(f"genes are one of {', '.join(RULES)}, got {rule!r}")


def respelled_words(counts: Mapping[str, int]) -> str:
    """What is said of transcripts whose gene is spelled otherwise in the store: `counts` by the files' spelling."""
    shown = ", ".join(sorted(counts)[:_SHOWN]) + (", ..." if len(counts) > _SHOWN else "")
    total, spellings = sum(counts.values()), "spelling" if len(counts) == 1 else "spellings"
    return f"{total:,} transcripts in {len(counts)} other {spellings} ({shown}) were added to genes that differ by case"


def common_panel(sections: Sequence[SectionGenes], rule: str) -> list[str]:
    """The sorted genes of a brain.

    rule "same": all genes, and every section must have them - a gene that a section's files do not declare is
    refused, one that is merely not observed is refused only where chance cannot explain it; "shared": the genes that
    all sections have; "all": the genes of any section, absent ones count zero. Names that differ by case alone are one
    gene, spelled as it is where it comes first. Raises `InputError`.
    """
    check_rule(rule)
    sections = _one_spelling(sections)
    union = set().union(*(section.names for section in sections))
    shared = union.intersection(*(section.names for section in sections))
    if rule == "same":
        for section in sections:
            absent = _absent(section, sections, union)
            if absent:
                raise InputError(
                    f"section {section.section} lacks {len(absent)} genes that other sections have "
                    f"({', '.join(absent[:8])}{', ...' if len(absent) > 8 else ''}); `--genes shared` keeps the "
                    f"{len(shared)} that all have, `--genes all` counts absent ones as zero"
                )
    panel = sorted(shared if rule == "shared" else union)
    if not panel:
        raise InputError("the sections share no gene: are they of one experiment?")
    return panel


def _one_spelling(sections: Sequence[SectionGenes]) -> list[SectionGenes]:
    """The sections, a gene spelled in all of them as in the first that has it."""
    first: dict[str, str] = {}
    found = []
    for section in sections:
        for name in (*(section.declared or ()), *section.counts):
            first.setdefault(name.casefold(), name)
        counts: dict[str, int] = {}
        for name, count in section.counts.items():
            gene = first[name.casefold()]
            counts[gene] = counts.get(gene, 0) + count
        declared = section.declared
        if declared is not None:
            declared = tuple(dict.fromkeys(first[name.casefold()] for name in declared))
        found.append(replace(section, counts=counts, declared=declared))
    return found


def _absent(section: SectionGenes, sections: Sequence[SectionGenes], union: set[str]) -> list[str]:
    missing = sorted(union - section.names)
    if section.declared is not None:
        return missing
    total = sum(section.counts.values())
    absent = []
    for gene in missing:
        having = [other for other in sections if gene in other.names]
        share = sum(other.counts.get(gene, 0) for other in having) / sum(sum(o.counts.values()) for o in having)
        if share * total >= _EXPECTED:
            absent.append(gene)
    return absent
