"""A brain written in parts by several processes is the same brain; what is lost or altered later is found and named."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from tiny_brain import GENES, random_transcripts

from tera_mind.errors import FormatError, MissingFileError
from tera_mind.formats.brain import Brain, create_brain
from tera_mind.formats.brain_writer import BrainWriter, Section
from tera_mind.formats.ome import shard_windows
from tera_mind.formats.transcripts import merge_keys, pack_keys

SHAPE = (2, 2, 300, 2400)  # two windows a section
STAINS = ("DAPI", "PolyT")


def contents():
    """An image whose first section's second window is empty in the second stain, and transcripts."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, SHAPE, dtype=np.uint8)
    image[1, 0, :, 2048:] = 0
    return image, [random_transcripts(rng, *SHAPE[2:], 3000, len(GENES)) for _ in range(SHAPE[1])]


def write_window(folder: Path, stain: int, section: int, number: int):
    box = list(shard_windows(SHAPE))[number]
    writer = BrainWriter.resume(folder)
    return (stain, box), writer.write_image(stain, section, box, contents()[0][(stain, section, *box.slices())])


def write_rows(folder: Path, section: int) -> str:
    writer = BrainWriter.resume(folder)
    rows = contents()[1][section]
    keys = pack_keys(rows.y.astype(np.int64), rows.x.astype(np.int64), rows.gene, writer.tile_columns)
    keys, counts = merge_keys(keys, rows.count.astype(np.int64))
    half = int(np.searchsorted(keys, np.uint64(5 << 32)))
    parts = writer.section_writer(section)
    parts.append(keys[:half], counts[:half])
    parts.append(keys[half:], counts[half:])
    return parts.finish()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    image, transcripts = contents()
    return create_brain(
        tmp_path_factory.mktemp("whole") / "b.zarr",
        image=image, transcripts=transcripts, genes=GENES, stains=STAINS, pixel_um=0.4,
    )  # fmt: skip


def test_parts_from_several_processes_make_the_same_brain(whole, tmp_path):
    folder = tmp_path / "b.zarr"
    BrainWriter.create(folder, genes=GENES, stains=STAINS, pixel_um=0.4, shape=SHAPE)
    with pytest.raises(FormatError, match="it is a unfinished brain store"):
        Brain.open(folder)
    (folder / "transcripts" / "1").mkdir()  # what a killed process left
    (folder / "transcripts" / "1" / "left").touch()
    places = [(stain, section, number) for section in (1, 0) for number in (1, 0) for stain in (0, 1)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        digests = [pool.submit(write_window, folder, *place) for place in places]
        rows = [pool.submit(write_rows, folder, section) for section in (0, 1)]
        images = [{}, {}]
        for (_, section, _), digest in zip(places, digests, strict=True):
            images[section].update([digest.result()])
        rows = [digest.result() for digest in rows]
    writer = BrainWriter.resume(folder)
    records = []
    for index, section in enumerate(whole.sections):
        writer.write_tissue(index, whole.tissue(index))
        for stain in (0, 1):
            writer.build_section_pyramid(stain, index)
        del images[index][min(images[index])], images[index][max(images[index])]  # sealing needs them all
        for place in [(0, index, 0), (1, index, 1)]:
            images[index].update([write_window(folder, *place)])
        sha256 = writer.seal_section(index, images[index], rows[index])
        plain = (section.name, section.z_um, section.affine_um_to_px, section.transcripts)
        records.append(Section(*plain, sha256=sha256))
    with pytest.raises(ValueError, match="not sealed"):
        writer.finish([records[0], Section(*plain)], dict.fromkeys(STAINS, (0.0, 255.0)))
    writer.finish(records, dict.fromkeys(STAINS, (0.0, 255.0)))
    parts = Brain.open(folder)
    assert parts.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(parts.image(parts.canvas), contents()[0])
    np.testing.assert_array_equal(parts.overview(1), whole.overview(1))
    parts.verify()


def test_resume_needs_an_unfinished_brain(whole, tmp_path):
    with pytest.raises(MissingFileError, match="nothing is there"):
        BrainWriter.resume(tmp_path / "absent")
    with pytest.raises(FormatError, match="it is a brain store"):
        BrainWriter.resume(whole.path)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def alter_pyramid(path: Path) -> None:
    array = zarr.open_array(path / "images" / "2", mode="r+")
    array[0, 1, 3, 3] = array[0, 1, 3, 3] ^ 1


def alter_rows(path: Path) -> None:
    for name in ("rows", "indptr"):
        shutil.rmtree(path / "transcripts" / "1" / name)
        shutil.copytree(path / "transcripts" / "0" / name, path / "transcripts" / "1" / name)


def alter_tissue(path: Path) -> None:
    array = zarr.open_array(path / "tissue", mode="r+")
    array[1, 2, 3] = 1 - array[1, 2, 3]


def flip(path: Path, share: float) -> None:
    """Another bit in a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 16
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the attributes of a store."""
    record = json.loads((path / "zarr.json").read_text())
    change(record["attributes"]["tera_mind"])
    (path / "zarr.json").write_text(json.dumps(record))


def alter_transcripts(path: Path, section: int) -> None:
    edit(
        path, lambda facts: facts["sections"][section].update(transcripts=facts["sections"][section]["transcripts"] + 1)
    )


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda path: (path / "images/0/c/1/1/0/1").unlink(), r"section 1 .*images/0/c/1/1/0/1 is lost"),
        (lambda path: swap(*(path / f"images/0/c/{c}/1/0/0" for c in "01")), "images/0/c/0/1/0/0 is not as it was"),
        (alter_pyramid, "level 2 of section 1"),
        (alter_rows, "transcripts/1 are not as they were"),
        (
            lambda path: edit(path, lambda facts: facts["sections"][1].update(sha256="0" * 64)),
            "section 1 .* is not as its SHA-256 says",
        ),
        (lambda path: (path / "transcripts/1/rows/c/0/0").unlink(), "transcripts/1/rows/c/0/0 cannot be read"),
        (lambda path: (path / "images/1/c/0/1/0/0").unlink(), "level 1 of section 1"),
        (lambda path: shutil.rmtree(path / "checksums/c/1"), r"checksums/c/1/0/0/0/0 is lost"),
        (lambda path: (path / "images/0/c/1/1/0/1").write_bytes(b""), r"section 1 .*images/0/c/1/1/0/1 is lost"),
        (lambda path: flip(path / "images/0/c/1/1/0/1", 0.3), "section 1 .* is damaged"),
        (lambda path: flip(path / "tissue/c/1/0/0", 0.7), "tissue is damaged in section 1"),
        (lambda path: (path / "tissue/c/1/0/0").unlink(), "tissue/c/1/0/0 is lost"),
        (alter_tissue, "section 1 .* is not as its SHA-256 says"),
        (lambda path: alter_transcripts(path, 1), "transcripts/1 holds .* transcripts, the attributes promise"),
    ],
)
def test_verify_names_what_was_altered(whole, tmp_path, alter, message):
    path = Path(shutil.copytree(whole.path, tmp_path / "b.zarr"))
    alter(path)
    done = []
    with pytest.raises(FormatError, match=message):
        Brain.open(path).verify(lambda sections: (done.append(index) or index for index in sections))
    assert done == [0, 1]  # the first section is whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.update(genes=facts["genes"][::-1]), "attributes of"),
        (lambda facts: facts.update(stains=facts["stains"][::-1]), "attributes of"),
        (lambda facts: facts.update(pixel_um=0.5), "attributes of"),
        (lambda facts: facts["sections"][1].update(z_um=11.0), "attributes of"),
        (lambda facts: facts["sections"][0].update(affine_um_to_px=[[2.5, 0, 1], [0, 2.5, 0]]), "attributes of"),
        (lambda facts: facts["intensity_range"].update(PolyT=[0.0, 254.0]), "attributes of"),
        (lambda facts: facts.pop("fingerprint"), "attributes of"),
        (lambda facts: facts["genes"].pop(), "has gene 4, the attributes name 4 genes"),
    ],
)
def test_verify_sees_changed_attributes(whole, tmp_path, change, message):
    path = Path(shutil.copytree(whole.path, tmp_path / "b.zarr"))
    edit(path, change)
    with pytest.raises(FormatError, match=message):
        Brain.open(path).verify()


@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.9, 0.9999])
def test_a_flipped_bit_is_never_read_as_data(whole, tmp_path, share):
    path = Path(shutil.copytree(whole.path, tmp_path / "b.zarr"))
    flip(path / "images/0/c/0/0/0/0", share)
    flip(path / "tissue/c/0/0/0", share)
    brain = Brain.open(path)
    for read in (lambda: brain.image(brain.canvas, [0]), lambda: brain.tissue(0)):
        with pytest.raises(FormatError, match="damaged"):
            read()
    np.testing.assert_array_equal(brain.image(brain.canvas, [1]), contents()[0][:, 1:])
    np.testing.assert_array_equal(brain.tissue(1), whole.tissue(1))


def test_no_tissue_is_stored_and_a_lost_mask_is_not_read_as_none(tmp_path):
    rows = random_transcripts(np.random.default_rng(0), 70, 70, 9, 1)
    brain = create_brain(
        tmp_path / "b.zarr", image=np.ones((1, 1, 70, 70), np.uint8), transcripts=[rows], genes=["a"], stains=["DAPI"],
        pixel_um=1.0, tissue=np.zeros((1, 2, 2), bool),
    )  # fmt: skip
    assert not brain.tissue(0).any()
    brain.verify()
    for damage in (lambda path: path.write_bytes(b""), Path.unlink):
        damage(brain.path / "tissue/c/0/0/0")
        with pytest.raises(FormatError, match="tissue/c/0/0/0 is lost, so a part of section 0"):
            brain.tissue(0)


def test_a_lost_window_is_not_read_as_zeros(whole, tmp_path):
    path = Path(shutil.copytree(whole.path, tmp_path / "b.zarr"))
    assert not (path / "images/0/c/1/0/0/1").exists()  # empty, so not stored
    assert not Brain.open(path).image(whole.canvas, [0])[1, 0, :, 2048:].any()
    for damage in (lambda shard: shard.write_bytes(b""), Path.unlink):
        damage(path / "images/0/c/0/0/0/1")
        brain = Brain.open(path)
        with pytest.raises(FormatError, match=r"images/0/c/0/0/0/1 is lost, so a part of section 0"):
            brain.image(brain.canvas)
    np.testing.assert_array_equal(
        brain.image(brain.canvas.intersect(brain.canvas.shift(0, -352)), [0]), contents()[0][:, :1, :, :2048]
    )
    assert brain.image(brain.canvas, [1]).all()
