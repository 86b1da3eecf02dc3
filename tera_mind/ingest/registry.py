"""The formats that can be ingested. A new one is a file with a reader, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from tera_mind.ingest.merscope import MerscopeReader
from tera_mind.ingest.source import Reader
from tera_mind.ingest.xenium import XeniumReader

#: name on the command line -> reader; its settings are keyword arguments
READERS: dict[str, Callable[..., Reader]] = {"xenium": XeniumReader, "merscope": MerscopeReader}
