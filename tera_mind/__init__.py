"""tera-mind: the genes of a tissue paint its morphology."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tera-mind")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0.0.0+source"
