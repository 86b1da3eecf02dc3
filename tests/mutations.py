"""Damage of every kind for the files of an instrument's folder: seeded, whatever the format.

`mutate(folder, seed)` changes one thing and says what. A mutator is a function of a file (or of the folder) and a
random generator; the seed picks the mutator in turn and the file by chance.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from table_mutations import LINES, TABLE, Mutator, Random

# bytes of any file


def truncate(path: Path, rng: Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, max(1, len(data))))])


def first_bytes(path: Path, rng: Random) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(1, 13))])


def empty(path: Path, _rng: Random) -> None:
    path.write_bytes(b"")


def zero_bytes(path: Path, rng: Random) -> None:
    data = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(data)))
    data[start : start + 24] = bytes(len(data[start : start + 24]))
    path.write_bytes(bytes(data))


def flip_bytes(path: Path, rng: Random) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    where = rng.integers(0, len(data), int(rng.integers(1, 9)))
    data[where] ^= rng.integers(1, 256, len(where)).astype(np.uint8)
    path.write_bytes(data.tobytes())


def flip_head(path: Path, rng: Random) -> None:
    """Where headers lie."""
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    where = rng.integers(0, min(len(data), 256), 3)
    data[where] ^= rng.integers(1, 256, len(where)).astype(np.uint8)
    path.write_bytes(data.tobytes())


def cut_out(path: Path, rng: Random) -> None:
    data = path.read_bytes()
    start = int(rng.integers(0, len(data)))
    path.write_bytes(data[:start] + data[start + int(rng.integers(1, 200)) :])


def twice(path: Path, _rng: Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def words(path: Path, _rng: Random) -> None:
    path.write_text("no such file or directory\n")


def noise(path: Path, rng: Random) -> None:
    path.write_bytes(rng.integers(0, 256, 300).astype(np.uint8).tobytes())


def missing(path: Path, _rng: Random) -> None:
    path.unlink()


def folder_instead(path: Path, _rng: Random) -> None:
    path.unlink()
    path.mkdir()


def broken_link(path: Path, _rng: Random) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def other_case(path: Path, _rng: Random) -> None:
    path.rename(path.with_name(path.name.swapcase()))


def odd_name(path: Path, _rng: Random) -> None:
    path.rename(path.with_name(f"é \n'\"{path.name}"))


BYTES = (truncate, zero_bytes, flip_bytes, flip_head, cut_out)
ANY = (
    *BYTES, first_bytes, empty, twice, words, noise, missing, folder_instead,
    broken_link, other_case, odd_name,
)  # fmt: skip

# JSON

WRONG_VALUES = (None, "", "many", -1, 0, 1e9, 1e400, [], {}, [1, "a"], True, {"a": None}, "\0")


def _places(record: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [place] if place else []
    entries = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in entries:
        found += _places(value, (*place, key))
    return found


def _parent(record: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        record = record[key]
    return record


def wrong_value(path: Path, rng: Random) -> None:
    record = json.loads(path.read_text())
    places = _places(record)
    place = places[int(rng.integers(len(places)))]
    _parent(record, place)[place[-1]] = WRONG_VALUES[int(rng.integers(len(WRONG_VALUES)))]
    path.write_text(json.dumps(record))


def no_value(path: Path, rng: Random) -> None:
    record = json.loads(path.read_text())
    places = _places(record)
    place = places[int(rng.integers(len(places)))]
    del _parent(record, place)[place[-1]]
    path.write_text(json.dumps(record))


def no_object(path: Path, rng: Random) -> None:
    path.write_text(str(rng.choice(["[]", "3", '"text"', "null", "{}", "[" * 3000])))


JSON = (wrong_value, no_value, no_object, wrong_value)

# an affine, 3 x 3 numbers in a text


def affine(path: Path, rng: Random) -> None:
    matrix = np.loadtxt(path)
    column = int(rng.integers(2))
    changes: list[Callable[[], np.ndarray]] = [
        lambda: matrix * 0,
        lambda: _with(matrix, np.nan, rng),
        lambda: _with(matrix, np.inf, rng),
        lambda: _with(matrix, 1e9, rng),
        lambda: matrix * np.where(np.arange(3) == column, -1, 1),
        lambda: matrix[[0, 0, 2]],
        lambda: matrix[::-1],
        lambda: matrix[:2],
        lambda: np.eye(4),
        lambda: matrix * [[1e-6], [1e-6], [1]],
        lambda: matrix * [[1e6], [1e6], [1]],
        lambda: np.add(matrix, [[0, 5 * matrix[0, 0], 0], [0, 0, 0], [0, 0, 0]]),
        lambda: matrix.T,
    ]
    np.savetxt(path, changes[int(rng.integers(len(changes)))]())


def _with(matrix: np.ndarray, value: float, rng: Random) -> np.ndarray:
    changed = matrix.copy()
    changed[rng.integers(2), rng.integers(3)] = value
    return changed


def affine_with_commas(path: Path, _rng: Random) -> None:
    path.write_text(path.read_text().replace(" ", ","))


AFFINE = (*[affine] * 8, affine_with_commas)

# images


def image(path: Path, rng: Random) -> None:
    """Pixels of another kind, shape or content."""
    pixels = tifffile.imread(path, key=0)
    height = len(pixels)
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: pixels.astype(np.float32),
        lambda: pixels.astype(np.int32),
        lambda: pixels.astype(np.uint8),
        lambda: pixels.astype(np.float64) * np.nan,
        lambda: pixels > 100,
        lambda: np.stack([pixels] * 3, axis=-1),
        lambda: np.stack([pixels] * 3),
        lambda: pixels[: height // 2],
        lambda: pixels[:1, :1],
        lambda: np.pad(pixels, 90),
        lambda: pixels[: height - 5].T,
        lambda: np.zeros_like(pixels),
        lambda: np.full_like(pixels, 65535),
        lambda: pixels[0],
    ]
    changed = kinds[int(rng.integers(len(kinds)))]()
    options: dict[str, Any] = {"photometric": "rgb"} if changed.shape[-1] == 3 else {}
    tifffile.imwrite(path, changed, metadata=None, ome=False, **options)


def other_storage(path: Path, rng: Random) -> None:
    """The same pixels in another way of storing them: nothing to complain about."""
    pixels = tifffile.imread(path, key=0)
    ways: list[dict[str, Any]] = [
        {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
        {"compression": "lzw", "tile": (32, 48)},
        {"compression": "jpeg2000", "tile": (32, 32)},
        {"bigtiff": True, "byteorder": ">"},
        {"compression": "zstd", "tile": (16, 16), "bigtiff": True},
        {"compression": "packbits"},
    ]
    tifffile.imwrite(path, pixels, metadata=None, ome=False, **ways[int(rng.integers(len(ways)))])


def ome_xml(path: Path, rng: Random) -> None:
    """Metadata that is broken or says something else."""
    pixels = tifffile.imread(path, key=0)
    height, width = pixels.shape
    size = f'SizeX="{width}" SizeY="{height}" SizeZ="1" SizeC="1" SizeT="1"'
    texts = [
        "<OME>",
        "<OME></OME>",
        '<OME><Image><Pixels SizeC="2"/></Image></OME>',
        f'<OME><Image><Pixels {size} DimensionOrder="ABC"/></Image></OME>',
        f'<OME><Image><Pixels {size} PhysicalSizeX="-1"/></Image></OME>',
        f'<OME><Image><Pixels {size} PhysicalSizeX="nan"/></Image></OME>',
        f'<OME><Image><Pixels {size} PhysicalSizeX="1" PhysicalSizeXUnit="mile"/></Image></OME>',
        '<OME><Image><Pixels SizeC="1000000000" SizeZ="1000000000"/></Image></OME>',
        '<OME><Image><Pixels SizeT="3"/></Image></OME>',
        '<OME><Image><Pixels SizeC="x"/></Image></OME>',
        '<OME><Image><Pixels><TiffData IFD="-7"/></Pixels></Image></OME>',
        '<OME><Image><Pixels><TiffData IFD="70"/></Pixels></Image></OME>',
        '<OME><Image><Pixels><TiffData FirstC="9"/></Pixels></Image></OME>',
        '<OME><BinaryOnly MetadataFile="gone.ome.tif"/></OME>',
        '<OME><BinaryOnly MetadataFile=""/></OME>',
        '<!DOCTYPE o [<!ENTITY a "b">]><OME>&a;</OME>',
        '<?xml version="1.0" encoding="nonsense"?><OME></OME>',
    ]
    text = texts[int(rng.integers(len(texts)))]
    tifffile.imwrite(path, pixels, metadata=None, ome=False, description=text)


IMAGE = (image, image, other_storage, ome_xml, image, ome_xml)

# the folder


def no_files(folder: Path, _rng: Random) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def no_folder(folder: Path, _rng: Random) -> None:
    shutil.rmtree(folder)


def junk(folder: Path, rng: Random) -> None:
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "Thumbs.db", "._" + str(rng.integers(99)), "mosaic_DAPI_zX.tif", "notes.ome.tif.bak"):
            (place / name).write_bytes(b"\0\1\2")


def apple_doubles(folder: Path, _rng: Random) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")


def no_image_at_all(folder: Path, _rng: Random) -> None:
    for path in list(folder.rglob("*.tif")):
        path.unlink()


def several_faults(folder: Path, rng: Random) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        ANY[int(rng.integers(9))](path, rng)


FOLDER = (no_files, no_folder, junk, apple_doubles, no_image_at_all, several_faults)


def _mutators(path: Path) -> tuple[Mutator, ...]:
    name = path.name.lower()
    if "transform" in name:
        return AFFINE
    if name.endswith(".parquet"):
        return TABLE
    if name.endswith(".csv"):
        return TABLE + LINES
    if name.endswith((".tif", ".tiff")):
        return IMAGE
    return JSON if name.endswith((".json", ".xenium")) else ()


def all_mutations(folder: Path) -> list[tuple[Path | None, Mutator]]:
    """(file relative to the folder, or None for the folder; mutator): every mutator of every file's kind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    own = [(path.relative_to(folder), mutator) for path in files for mutator in (*_mutators(path), *ANY)]
    return [*own, *((None, mutator) for mutator in FOLDER)]


def mutate(folder: Path, seed: int) -> str:
    """Change one thing in the folder and say what.

    Seeds in a row go through all mutators of all files, then on and on through damaged bytes of every file.
    """
    choices = all_mutations(folder)
    again = [(file, mutator) for file, mutator in choices if mutator in BYTES]
    file, mutator = choices[seed] if seed < len(choices) else again[(seed - len(choices)) % len(again)]
    mutator(folder if file is None else folder / file, np.random.default_rng([seed, 1]))
    return f"seed {seed}: {mutator.__name__} of {file or 'the folder'}"
