"""The file of a sweep (YAML), read and checked.

    name: sections                     # letters, digits, . _ -
    group: ablation-sections           # W&B group of every run (default: the name)
    recipe: ../../demo.yaml            # YAML for `tera-mind fit`, relative to this file
    overrides: {trainer.max_steps: 300}          # keys of the recipe, the same in every run
    values: {brain: brain.zarr}        # words for {brain} in the stages; `--set brain=...` gives others
    list:                              # settings that change together (several such lists: a list of them,
      - {sections: 1, gene_sections: 1}          # every entry of one with every entry of the others) ...
      - {sections: 2, gene_sections: 4}
    grid: {model.dropout: [0.0, 0.1]}  # ... times every combination of these
    seeds: [0, 1]                      # times these
    stages:                            # in order; words after `tera-mind`
      shards:
        command: shards {brain} --gene-sections {gene_sections} --out {here}/shards
        makes: shards                  # what the command leaves in its folder {here}
      fit:
        command: fit {recipe} --data.shards {shards} --trainer.default_root_dir {here} --seed_everything {seed}
        makes: last.ckpt
        sbatch: [--gpus-per-task=1, --time=24:00:00]         # for --launcher slurm
      ...
    table:
      from: evaluate                   # the stage that makes metrics.json
      setting: sections                # along the figure's axis
      metrics: [psnr/DAPI, psnr/PolyT, frechet/DAPI]         # <metric>/<stain>, as logged during training
      compare: 2                       # may be left out: test all values of the setting against this one, as
                                       # `tera-mind compare` does, seeds of one value as one line

In a command `{name}` is a setting, a value, `seed`, an earlier stage (the path of what it makes), `here`, or `recipe`:
`-c RECIPE`, the overrides, and every setting whose name has a dot, which is a key of the recipe.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tera_mind.errors import InputError, MissingFileError

Value = str | int | float | bool | list[Any] | None
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_PLACE = re.compile(r"\{([A-Za-z_][\w.]*)\}")
_RESERVED = {"seed", "here", "recipe"}
_KEYS = {"name", "group", "recipe", "overrides", "values", "list", "grid", "seeds", "stages", "table"}


@dataclass(frozen=True)
class Stage:
    """A command of every run: words after `tera-mind` with placeholders, and what it makes in its own folder."""

    name: str
    command: tuple[str, ...]
    makes: str
    #: options for `sbatch`: what this stage needs of a cluster
    sbatch: tuple[str, ...] = ()

    @property
    def places(self) -> set[str]:
        """Names of the placeholders in the command."""
        return set(_PLACE.findall(" ".join(self.command)))


@dataclass(frozen=True)
class Table:
    """Which figures of which stage's metrics.json are set against which setting; metrics are (metric, stain).

    compare: the value of the setting that all others are tested against; None for no tests.
    """

    stage: str
    setting: str
    metrics: tuple[tuple[str, str], ...]
    compare: Value = None


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file states it; `points` are the combinations of settings, without the seeds."""

    path: Path
    name: str
    group: str
    recipe: Path
    overrides: Mapping[str, Value]
    values: Mapping[str, Value]
    points: tuple[Mapping[str, Value], ...]
    #: settings of each list: they change together, so a stage that uses one depends on all of its list
    tied: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    table: Table

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of what varies, the seed left out."""
        return tuple(self.points[0])


def read_sweep(path: Path, values: Mapping[str, str] | None = None) -> Sweep:
    """Read a sweep; `values` take the place of the file's own. `InputError` with the key where something is wrong."""
    if not path.is_file():
        raise MissingFileError(
            f"no sweep at {path}: give a YAML file, for example experiments/ablations/demo/steps.yaml"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    try:
        return _parse(path, raw, values or {})
    except InputError as error:
        raise InputError(f"sweep {path}: {error}") from None


def _parse(path: Path, raw: Any, given: Mapping[str, str]) -> Sweep:
    raw = _mapping(raw, "the file", _KEYS)
    if missing := [key for key in ("name", "recipe", "stages", "table") if key not in raw]:
        raise InputError(f"{missing[0]!r} is missing")
    name = raw["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"name takes letters, digits, '.', '_' and '-', got {name!r}")
    recipe = Path(os.path.normpath(path.parent / str(raw["recipe"])))
    if not recipe.is_file():
        raise MissingFileError(f"sweep {path}: no recipe at {recipe}")
    values = _mapping(raw.get("values", {}), "values")
    if lost := sorted(given.keys() - values.keys()):
        raise InputError(f"--set {lost[0]}: the file's values are {', '.join(values) or 'none'}")
    lists = _lists(raw.get("list", [{}]))
    points = tuple(_points(lists, _mapping(raw.get("grid", {}), "grid")))
    if not points[0]:
        raise InputError("give what varies: a list or a grid")
    seeds = _seeds(raw.get("seeds", [0]))
    stages = tuple(_stages(raw["stages"], set(points[0]), set(values)))
    if clash := sorted((set(points[0]) & (set(values) | _RESERVED)) | (set(values) & _RESERVED)):
        raise InputError(f"{clash[0]!r} is the name of two things")
    overrides = _mapping(raw.get("overrides", {}), "overrides")
    if clash := sorted(set(overrides) & set(points[0])):
        raise InputError(f"{clash[0]} is both an override and a setting that varies")
    return Sweep(
        path,
        name,
        str(raw.get("group", name)),
        recipe,
        overrides,
        {**values, **given},
        points,
        tuple(tuple(entries[0]) for entries in lists if entries[0]),
        seeds,
        stages,
        _table(raw["table"], {stage.name for stage in stages}, points),
    )


def _seeds(raw: Any) -> tuple[int, ...]:
    if not isinstance(raw, list) or not raw or any(type(seed) is not int or seed < 0 for seed in raw):
        raise InputError(f"seeds is a list of whole numbers from 0, got {raw!r}")
    if len(set(raw)) < len(raw):
        raise InputError(f"seeds holds one twice: {raw}")
    return tuple(raw)


def _mapping(raw: Any, what: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise InputError(f"{what} must be `key: value` pairs, got {raw!r}")
    if keys is not None and (lost := sorted(set(raw) - set(keys))):
        raise InputError(f"{what} has an unknown key {lost[0]!r}; there are {', '.join(sorted(keys))}")
    return raw


def _lists(raw: Any) -> list[list[dict[str, Value]]]:
    """The one list of settings, or the several, each with entries of the same keys."""
    nested = isinstance(raw, list) and bool(raw) and all(isinstance(entry, list) for entry in raw)
    found = []
    for listed in raw if nested else [raw]:
        if not isinstance(listed, list) or not listed:
            raise InputError(f"list is a list of settings, got {listed!r}")
        entries = [_mapping(entry, "an entry of list") for entry in listed]
        if any(set(entry) != set(entries[0]) for entry in entries):
            raise InputError("all entries of list must have the same keys")
        found.append(entries)
    keys = [key for entries in found for key in entries[0]]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InputError(f"{twice[0]} is in two lists")
    return found


def _points(lists: Sequence[Sequence[Mapping[str, Value]]], grid: Mapping[str, Any]) -> Iterator[Mapping[str, Value]]:
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise InputError(f"grid: {key} needs a list of values, got {choices!r}")
        if any(key in entries[0] for entries in lists):
            raise InputError(f"{key} is in both list and grid")
    seen = set()
    for listed in itertools.product(*lists):
        for choice in itertools.product(*grid.values()):
            point = {key: value for entry in listed for key, value in entry.items()} | dict(
                zip(grid, choice, strict=True)
            )
            if (text := json.dumps(point)) in seen:
                raise InputError(f"the same settings come twice: {text}")
            seen.add(text)
            yield point


def _stages(raw: Any, settings: set[str], values: set[str]) -> Iterator[Stage]:
    known = settings | values | _RESERVED
    for name, entry in _mapping(raw, "stages").items():
        if not _NAME.fullmatch(name) or name in known:
            raise InputError(f"stage {name!r}: the name is taken, or has characters that do not fit a folder")
        given = _mapping(entry, f"stage {name}", {"command", "makes", "sbatch"})
        if not isinstance(given.get("command"), str) or not isinstance(given.get("makes"), str):
            raise InputError(f"stage {name} needs `command` and `makes`, both text")
        options = given.get("sbatch", [])
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise InputError(f"stage {name}: sbatch is a list of options, got {options!r}")
        try:
            words = tuple(shlex.split(given["command"]))
        except ValueError as error:
            raise InputError(f"stage {name}: command cannot be read: {error}") from None
        stage = Stage(name, words, given["makes"], tuple(options))
        if not words:
            raise InputError(f"stage {name}: command is empty")
        if lost := sorted(stage.places - known):
            raise InputError(
                f"stage {name}: {{{lost[0]}}} is no setting, value or earlier stage; there are "
                f"{', '.join(sorted(known))}"
            )
        known = known | {name}
        yield stage


def _table(raw: Any, stages: set[str], points: tuple[Mapping[str, Value], ...]) -> Table:
    given = _mapping(raw, "table", {"from", "setting", "metrics", "compare"})
    stage, setting, metrics = (given.get(key) for key in ("from", "setting", "metrics"))
    if not isinstance(stage, str) or stage not in stages:
        raise InputError(f"table: from names a stage ({', '.join(sorted(stages))}), got {stage!r}")
    if not isinstance(setting, str) or setting not in points[0]:
        raise InputError(f"table: setting is one that varies ({', '.join(points[0])}), got {setting!r}")
    if not isinstance(metrics, list) or not metrics or not all(isinstance(entry, str) for entry in metrics):
        raise InputError(f"table: metrics is a list of <metric>/<stain>, got {metrics!r}")
    compare = given.get("compare")
    if compare is not None and compare not in (values := [point[setting] for point in points]):
        raise InputError(f"table: compare is a value of {setting} ({', '.join(map(written, values))}), got {compare!r}")
    pairs = tuple((entry.partition("/")[0], entry.partition("/")[2]) for entry in metrics)
    return Table(stage, setting, pairs, compare)


def fill(text: str, words: Mapping[str, str]) -> str:
    """Replace every placeholder of a word."""
    return _PLACE.sub(lambda match: words[match[1]], text)


def written(value: Value) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)
