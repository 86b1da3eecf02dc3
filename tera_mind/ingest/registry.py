"""The formats that can be ingested. A new one is a file with a reader, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from tera_mind.ingest.bil import BilReader
from tera_mind.ingest.cosmx import CosMxReader
from tera_mind.ingest.merscope import MerscopeReader
from tera_mind.ingest.published import PublishedReader
from tera_mind.ingest.source import Reader
from tera_mind.ingest.spatialdata import SpatialDataReader
from tera_mind.ingest.table import TableReader
from tera_mind.ingest.xenium import XeniumReader

#: name on the command line -> reader; its settings are keyword arguments
READERS: dict[str, Callable[..., Reader]] = {
    "xenium": XeniumReader,
    "merscope": MerscopeReader,
    "bil": BilReader,
    "cosmx": CosMxReader,
    "table": TableReader,
    "spatialdata": SpatialDataReader,
    "published": PublishedReader,
}
