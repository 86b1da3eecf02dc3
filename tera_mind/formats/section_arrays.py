"""Small uint8 arrays of a brain store with one row a section, such as the tissue mask: a lost or altered file is seen.

Every chunk is of one section, is stored even where it is zero, since zarr reads a lost one as zeros, and carries the
checksum of its content (a zstd frame's).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tera_mind.errors import FormatError
from tera_mind.formats.ome import DAMAGE, holds_bytes


class SectionArray:
    """An array (section, ...) of uint8. Raises `FormatError` where it is damaged.

    `sparse`: chunks that are zero throughout need not be stored, as in stores of version 1.
    """

    def __init__(self, path: Path, mode: Literal["r", "r+"] = "r", *, sparse: bool = False) -> None:
        self._path, self._sparse = path, sparse
        try:
            self._array = zarr.open_array(path, mode=mode).with_config({"write_empty_chunks": True})
        except DAMAGE as error:
            raise FormatError(f"{path} cannot be read ({error}); ingest the brain again") from None

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...]) -> SectionArray:
        """An empty one, for writing."""
        zarr.create_array(
            path,
            shape=shape,
            dtype="uint8",
            chunks=(1, *shape[1:]),
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=0,
        )
        return cls(path, "r+")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    def read(self, section: int) -> NDArray[np.uint8]:
        """The values of a section."""
        if not self._sparse:
            for chunk in product([section], *map(range, self._array.cdata_shape[1:])):
                path = self._path.joinpath("c", *map(str, chunk))
                if not holds_bytes(path):
                    raise FormatError(f"{path} is lost, so a part of section {section}; ingest the brain again")
        try:
            return cast("NDArray[np.uint8]", np.asarray(self._array[section], np.uint8))
        except DAMAGE as error:
            raise FormatError(
                f"{self._path} is damaged in section {section} ({error}); ingest the brain again"
            ) from None

    def write(self, section: int, values: NDArray[np.uint8]) -> None:
        """Write the values of a section."""
        self._array[section] = values
