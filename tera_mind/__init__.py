"""tera-mind: the genes of a tissue paint its morphology."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("tera-mind")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0+source"

#: what users call by the package's own name, and where it lives; imported when first asked for, so that
#: `import tera_mind` stays quick and every part below may import the version
_LAZY = {"open_twin": "tera_mind.sampling.twin"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
