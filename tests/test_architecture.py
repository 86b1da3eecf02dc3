"""The floors of the house (docs/layout.md): who may import whom, what lies where, how long a file may be."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: part of the house -> floor; a part imports itself and parts of strictly lower floors, nothing beside or above it
FLOORS = {
    "tera_mind": 0,  # the package's own __init__: its version
    "tera_mind.errors": 1,
    "tera_mind.geometry": 2,
    "tera_mind.processes": 2,
    "tera_mind.sums": 2,
    "tera_mind.formats": 3,
    "tera_mind.noise": 3,
    "tera_mind.model": 3,
    "tera_mind.diffusion": 4,
    "tera_mind.metrics": 4,
    "tera_mind.report": 4,
    "tera_mind.analysis": 4,
    "tera_mind.baselines": 4,
    "tera_mind.ingest": 4,
    "tera_mind.simulate": 4,
    "tera_mind.survey": 4,
    "tera_mind.export": 4,
    "tera_mind.sweep": 4,
    "datamodules": 4,
    "tera_mind.module": 5,
    "tera_mind.sampling": 5,
    "tera_mind.effects": 5,
    "callbacks": 6,
    "tera_mind.profiling": 6,
    "tera_mind.cli": 7,
}
#: parts that `tera_mind` may reach only through its command line, whatever their floor
FOR_CLI_ONLY = {"datamodules", "callbacks"}
PACKAGES = ("tera_mind", "datamodules", "callbacks")
LONGEST_FILE = 400

TOP_LEVEL = {
    *("pyproject.toml", "README.md", "Makefile", "constraints.txt", "LICENSE", "CITATION.cff", "CHANGELOG.md"),
    *("CONTRIBUTING.md", ".ci", ".gitignore"),
    *("tera_mind", "experiments", "datamodules", "callbacks", "slurm", "tests", "benchmarks", "docs"),
}
TOP_LEVEL_OPTIONAL = {".github"}


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module of the three packages."""
    modules = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def part_of(module: str) -> str:
    """The part of the house that a module belongs to: `tera_mind.formats.brain` -> `tera_mind.formats`."""
    return ".".join(module.split(".")[: 2 if module.startswith("tera_mind") else 1])


def imports_of(module: str, file: Path, modules: dict[str, Path]) -> list[tuple[int, str]]:
    """(line, own module) for each import anywhere in the file, also inside functions and `import_module("...")`."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            # `from package import module` names a module; `from module import function` only the module itself
            names += [
                (node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base)
                for alias in node.names
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            names += [
                (node.lineno, word.value)
                for word in node.args[:1]
                if isinstance(word, ast.Constant) and isinstance(word.value, str)
            ]
    return [(line, name) for line, name in names if name.split(".")[0] in PACKAGES]


def arrow_faults(root: Path) -> list[str]:
    """Every import that goes sideways, upwards, in a circle, or to a module that does not exist; one line each."""
    modules = modules_of(root)
    faults = []
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        here = part_of(module)
        if here not in FLOORS:
            faults.append(f"{file.relative_to(root)}: {here} has no floor")
            continue
        graph[module] = set()
        for line, target in imports_of(module, file, modules):
            graph[module].add(target)
            there, place = part_of(target), f"{file.relative_to(root)}:{line}"
            if there in FOR_CLI_ONLY and here.startswith("tera_mind") and here != "tera_mind.cli":
                faults.append(f"{place}: {here} imports {there}, which only the command line may")
            elif there != here and FLOORS.get(there, 99) >= FLOORS[here]:
                faults.append(f"{place}: {here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS.get(there)})")
            elif target not in modules:
                faults.append(f"{place}: {target} does not exist")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append(f"imports go in a circle: {' -> '.join(error.args[1])}")
    return faults


def layout_faults(root: Path) -> list[str]:
    """Python where only settings or batch files belong, and files that are too long; one line each."""
    faults = [
        f"{file.relative_to(root)}: {folder}/ holds no Python"
        for folder in ("experiments", "slurm")
        for file in sorted((root / folder).rglob("*.py"))
    ]
    for folder in (*PACKAGES, "tests", "benchmarks"):
        for file in sorted((root / folder).rglob("*.py")):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if lines > LONGEST_FILE:
                faults.append(f"{file.relative_to(root)}: {lines} lines, at most {LONGEST_FILE}")
    return faults


def test_imports_point_down() -> None:
    assert arrow_faults(ROOT) == []


def test_things_lie_where_they_belong() -> None:
    assert layout_faults(ROOT) == []


def test_top_level_is_exactly_this() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be told from what lies around")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {path.split("/")[0] for path in listed.split("\0") if path}
    assert entries - TOP_LEVEL_OPTIONAL == TOP_LEVEL


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))]
    assert links
    lost = [
        f"{page.relative_to(ROOT)}: {link}"
        for page, link in links
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("tera_mind/geometry.py", "from tera_mind.formats import brain", "tera_mind.geometry (floor 2) imports"),
        ("tera_mind/noise.py", "import tera_mind.formats.brain", "tera_mind.noise (floor 3) imports"),
        ("tera_mind/formats/shards.py", "from ..noise import bits", "tera_mind.formats (floor 3) imports"),
        ("tera_mind/metrics/seams.py", "def f():\n    from tera_mind import sampling", "tera_mind.metrics (floor 4)"),
        ("tera_mind/module.py", "import datamodules", "which only the command line may"),
        ("tera_mind/sampling/plain.py", "from callbacks.ema import Ema", "which only the command line may"),
        ("datamodules/pairs.py", "from tera_mind.module import Module", "datamodules (floor 4) imports"),
        (
            "callbacks/ema.py",
            "import importlib\nimportlib.import_module('tera_mind.cli')",
            "callbacks (floor 6) imports",
        ),
        ("tera_mind/utils.py", "", "tera_mind.utils has no floor"),
        (
            "tera_mind/formats/shards.py",
            "from tera_mind.formats.lost import x",
            "tera_mind.formats.lost does not exist",
        ),
        ("tera_mind/formats/brain.py", "import tera_mind.formats.other", "imports go in a circle"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, file: str, source: str, fault: str) -> None:
    house(tmp_path)
    assert arrow_faults(tmp_path) == []
    (tmp_path / file).write_text(source)
    found = arrow_faults(tmp_path)
    assert any(fault in line for line in found), found


def test_what_the_floors_allow_is_not_a_fault(tmp_path: Path) -> None:
    house(tmp_path)
    (tmp_path / "tera_mind/sampling/plain.py").write_text(
        "import torch\nfrom tera_mind import __version__, noise\nfrom ..formats.brain import Brain\nfrom . import x\n"
    )
    (tmp_path / "tera_mind/cli/fit.py").write_text("import callbacks\nfrom datamodules import pairs\n")
    assert arrow_faults(tmp_path) == []


def test_misplaced_and_overlong_files_are_found(tmp_path: Path) -> None:
    house(tmp_path)
    assert layout_faults(tmp_path) == []
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/run.py").write_text("")
    (tmp_path / "callbacks/ema.py").write_text("\n" * (LONGEST_FILE + 1))
    assert layout_faults(tmp_path) == [
        "experiments/run.py: experiments/ holds no Python",
        f"callbacks/ema.py: {LONGEST_FILE + 1} lines, at most {LONGEST_FILE}",
    ]


def house(root: Path) -> None:
    """A small house in which every import points down."""
    for part in FLOORS:
        folder = root.joinpath(*part.split("."))
        if part in {
            "tera_mind.errors",
            "tera_mind.geometry",
            "tera_mind.processes",
            "tera_mind.sums",
            "tera_mind.noise",
            "tera_mind.module",
        }:
            folder.with_suffix(".py").write_text("")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text("")
    (root / "tera_mind/formats/other.py").write_text("from tera_mind.formats.brain import Brain")
    (root / "tera_mind/formats/brain.py").write_text("from tera_mind.errors import InputError")
    (root / "datamodules/pairs.py").write_text("from tera_mind.formats.brain import Brain")
