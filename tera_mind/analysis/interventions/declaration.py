"""Interventions in YAML: named regions, populations and edits; anything unknown or wrong is refused in one line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tera_mind.analysis.interventions.edits import Edit, Function, Match, Replace, Scale, SelfScale
from tera_mind.analysis.interventions.intervention import Intervention, Part
from tera_mind.analysis.interventions.masks import LabelMap, Mask
from tera_mind.analysis.interventions.population import Basis
from tera_mind.analysis.strict_yaml import read_yaml
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box

EDITS = ("scale", "match", "self_scale", "replace", "function")
#: fields that every edit may have
_COMMON = {"kind", "region", "strength"}
#: field -> types that YAML may give; the keys of a kind are those of its class
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "scale": {"genes": (list,), "factor": (int, float), "others": (str,)},
    "match": {
        "population": (str,), "target": (str,), "components": (int, str), "centred": (bool,), "genes": (list,),
    },
    "self_scale": {
        "population": (str,), "factor": (int, float), "components": (int, str), "centred": (bool,), "genes": (list,),
    },
    "replace": {
        "pattern": (str,), "keep": (int, float), "high": (int, float), "period_px": (int,), "genes": (list,),
        "seed": (int,),
    },
    "function": {"function": (str,), "arguments": (dict,)},
}  # fmt: skip
_NEEDED = {
    "scale": ("genes", "factor"), "match": ("population", "target"), "self_scale": ("population", "factor"),
    "replace": ("pattern",), "function": ("function",),
}  # fmt: skip


@dataclass(frozen=True)
class RegionSpec:
    """A place by name: a box as `Box.parse` reads it, sections, and labels of a map; each may be left out."""

    box: str | None = None
    sections: tuple[int, ...] | None = None
    labels: Path | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PopulationSpec:
    """A population by name: a stored file, or a brain (None: the one generated from) with a place."""

    file: Path | None = None
    brain: Path | None = None
    region: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A YAML file as read: nothing in it was opened yet, paths are relative to the file."""

    name: str
    regions: Mapping[str, RegionSpec]
    populations: Mapping[str, PopulationSpec]
    edits: tuple[Mapping[str, Any], ...]

    def mask(self, name: str | None, brain: Brain, open_labels: Callable[[Path, Brain], LabelMap]) -> Mask:
        """A named region in a brain's pixels; None is all of the brain: its canvas and its sections.

        Windows reach beyond both, and nothing is put where the brain has nothing.
        """
        spec = RegionSpec() if name is None else self.regions[name]
        box = brain.canvas if spec.box is None else Box.parse(spec.box, brain.canvas, brain.pixel_um)
        sections = tuple(range(len(brain.sections))) if spec.sections is None else spec.sections
        beyond = [z for z in sections if not 0 <= z < len(brain.sections)]
        if beyond:
            raise InputError(f"region {name!r} names section {beyond[0]}, the brain has 0 to {len(brain.sections) - 1}")
        if spec.labels is None:
            return Mask(box, sections)
        return Mask.of_labels(open_labels(spec.labels, brain), spec.names, box, sections)

    def used_populations(self) -> tuple[str, ...]:
        """Populations that an edit uses, in order."""
        named = [edit[role] for edit in self.edits for role in ("population", "target") if role in edit]
        return tuple(dict.fromkeys(named))

    def intervention(
        self,
        brain: Brain,
        genes: Sequence[str],
        *,
        patch_px: int,
        bin_px: int,
        populations: Mapping[str, Basis],
        open_labels: Callable[[Path, Brain], LabelMap],
    ) -> Intervention:
        """The intervention on a brain for a network's panel; every edit is checked. Raises `TeraMindError`."""
        parts = []
        for number, record in enumerate(self.edits, start=1):
            try:
                edit = _edit(record, populations)
                mask = self.mask(record.get("region"), brain, open_labels)
                parts.append(Part(edit, mask, float(record.get("strength", 1.0))))
                Intervention(self.name, (parts[-1],), tuple(genes), patch_px, bin_px, brain.pixel_um)
            except InputError as error:
                raise InputError(f"edit {number} ({record['kind']}): {error}") from error
        return Intervention(self.name, tuple(parts), tuple(genes), patch_px, bin_px, brain.pixel_um)


def read_experiment(path: Path) -> Experiment:
    """Read and check the words of an experiment. Raises `MissingFileError` or `FormatError`, one line."""
    try:
        content = read_yaml(path)
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"expected an experiment in YAML at {path}, no file is there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from None
    record = _mapping(content, {"name", "regions", "populations", "edits"}, f"{path}")
    edits = record.get("edits")
    if not isinstance(edits, list) or not edits:
        raise FormatError(f"{path} should hold a list `edits`, each with a kind: {', '.join(EDITS)}")
    regions = {
        name: _region(value, path, name)
        for name, value in _mapping(record.get("regions") or {}, None, f"{path}: regions").items()
    }
    populations = {
        name: _population(value, path, name, regions)
        for name, value in _mapping(record.get("populations") or {}, None, f"{path}: populations").items()
    }
    for number, edit in enumerate(edits, start=1):
        _check_edit(edit, f"{path}: edit {number}", regions, populations)
    return Experiment(str(record.get("name", path.stem)), regions, populations, tuple(edits))


def _mapping(value: object, known: set[str] | None, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FormatError(f"{where} should be a mapping of names, got {value!r}")
    unknown = [] if known is None else sorted(set(value) - known)
    if unknown:
        raise FormatError(f"{where} has {', '.join(sorted(known or ()))}; {unknown[0]!r} is none of these")
    return value


def _region(value: object, path: Path, name: str) -> RegionSpec:
    where = f"{path}: region {name!r}"
    record = _mapping(value, {"box", "sections", "labels", "names"}, where)
    if not record:
        raise FormatError(f"{where} needs a box, sections, or labels with names")
    sections = record.get("sections")
    names = record.get("names", [])
    if sections is not None and not (isinstance(sections, list) and sections and all(type(z) is int for z in sections)):
        raise FormatError(f"{where}: sections is a list of numbers, got {sections!r}")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise FormatError(f"{where}: names is a list of labels' names, got {names!r}")
    if ("labels" in record) != bool(names):
        raise FormatError(f"{where} needs both labels (a map or truth folder) and names (which of them), or neither")
    for key in ("box", "labels"):
        if key in record and not isinstance(record[key], str):
            raise FormatError(f"{where}: {key} is text, got {record[key]!r}")
    labels = None if "labels" not in record else path.parent / record["labels"]
    return RegionSpec(record.get("box"), None if sections is None else tuple(sections), labels, tuple(names))


def _population(value: object, path: Path, name: str, regions: Mapping[str, RegionSpec]) -> PopulationSpec:
    where = f"{path}: population {name!r}"
    if Path(name).name != name or name in {".", ".."}:
        raise FormatError(f"{where}: it is kept in a file of its name, so give a name without / and other than . or ..")
    record = _mapping({} if value is None else value, {"file", "brain", "region"}, where)
    for key, text in record.items():
        if not isinstance(text, str):
            raise FormatError(f"{where}: {key} is text, got {text!r}")
    if "file" in record and len(record) > 1:
        raise FormatError(f"{where} is a file, or a brain with a region, not both")
    if record.get("region") is not None and record["region"] not in regions:
        raise FormatError(f"{where}: no region {record['region']!r}; there are {', '.join(regions) or 'none'}")
    paths = {key: path.parent / record[key] for key in ("file", "brain") if key in record}
    return PopulationSpec(paths.get("file"), paths.get("brain"), record.get("region"))


def _check_edit(
    record: object, where: str, regions: Mapping[str, RegionSpec], populations: Mapping[str, PopulationSpec]
) -> None:
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in EDITS:
        raise FormatError(f"{where} needs a kind, one of {', '.join(EDITS)}, got {kind!r}")
    fields = _FIELDS[kind]
    known = _mapping(record, _COMMON | set(fields), f"{where} ({kind})")
    for name in _NEEDED[kind]:
        if name not in known:
            raise FormatError(f"{where} ({kind}) needs {', '.join(_NEEDED[kind])}; {name} is missing")
    types: dict[str, tuple[type, ...]] = {**fields, "region": (str,), "strength": (int, float)}
    for name, value in known.items():
        if name != "kind" and (not isinstance(value, types[name]) or (isinstance(value, bool) and name != "centred")):
            words = " or ".join("text" if t is str else t.__name__ for t in types[name])
            raise FormatError(f"{where} ({kind}): {name} should be {words}, got {value!r}")
    if "genes" in known and not (known["genes"] and all(isinstance(gene, str) for gene in known["genes"])):
        raise FormatError(f"{where} ({kind}): genes is a list of one name or more, got {known['genes']!r}")
    _check_plain(known.get("arguments", {}), f"{where} ({kind}): arguments")
    if known.get("components", "all") != "all" and not isinstance(known["components"], int):
        raise FormatError(f"{where} ({kind}): components is a number or 'all', got {known['components']!r}")
    for name, there in (("region", regions), ("population", populations), ("target", populations)):
        if name in known and known[name] not in there:
            raise FormatError(f"{where} ({kind}): no {name} {known[name]!r}; there are {', '.join(there) or 'none'}")


def _check_plain(value: object, where: str) -> None:
    """Arguments are written into summaries and digests, so they must be what JSON can hold (YAML has dates too)."""
    try:
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where} should be numbers, text, lists and mappings of names: {error}") from None


def _edit(record: Mapping[str, Any], populations: Mapping[str, Basis]) -> Edit:
    """The edit that a checked record says."""
    values = {name: value for name, value in record.items() if name not in _COMMON}
    if "genes" in values:
        values["genes"] = tuple(values["genes"])
    if values.get("components") == "all":
        values["components"] = None
    for role in ("population", "target"):
        if role in values:
            values[role] = populations[values[role]]
    for name in ("factor", "keep", "high"):
        if name in values:
            values[name] = float(values[name])
    kinds: dict[str, Callable[..., Edit]] = {
        "scale": Scale, "match": Match, "self_scale": SelfScale, "replace": Replace, "function": Function,
    }  # fmt: skip
    made = kinds[str(record["kind"])]
    assert set(values) <= set(inspect.signature(made).parameters)
    return made(**values)
