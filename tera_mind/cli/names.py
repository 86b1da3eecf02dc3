"""`datamodules` and `callbacks` are generic names: say plainly when another package of that name hides ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import tera_mind
from tera_mind.errors import InputError

#: packages that are installed beside `tera_mind` and belong to this project
OWN_PACKAGES = ("datamodules", "callbacks")


def check_own_packages() -> None:
    """Raise `InputError` unless Python would import this project's own `datamodules` and `callbacks`.

    Nothing is imported: a foreign package must not run its code before it is named.
    """
    home = Path(tera_mind.__file__).resolve().parent.parent
    for name in OWN_PACKAGES:
        expected = home / name / "__init__.py"
        found = _source_of(name)
        if found is None:
            raise InputError(
                f"package {name!r} of tera-mind should be {expected} and is not there; reinstall tera-mind"
            )
        if found != expected:
            raise InputError(
                f"package {name!r} of tera-mind is {expected}, but Python finds {found} before it; "
                f"rename that one, or take {_search_entry(found)} off the Python path (PYTHONPATH, working folder)"
            )


def _source_of(name: str) -> Path | None:
    """The file that `import name` runs; the folder where the name is a folder without `__init__.py`."""
    if name in sys.modules and sys.modules[name].__spec__ is None:
        module_file = sys.modules[name].__file__
        return None if module_file is None else Path(module_file).resolve()
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.origin is not None:
        return Path(spec.origin).resolve()
    folders = list(spec.submodule_search_locations or [])
    return Path(folders[0]).resolve() if folders else None


def _search_entry(found: Path) -> Path:
    """The folder of the Python path that holds a package or module found there."""
    return found.parent.parent if found.name == "__init__.py" else found.parent
