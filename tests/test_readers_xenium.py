"""Xenium 1 to 4: tables of every version, images of every layout, channels by name."""

from __future__ import annotations

import gzip
import pickle
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from instruments import PIXEL_UM, write_xenium
from instruments_more import dropped, found

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.geometry import Box
from tera_mind.ingest.faults import FaultsError
from tera_mind.ingest.ome_tiff import describe
from tera_mind.ingest.xenium import XeniumReader

SHAPE = (70, 90)
NAMES = ("DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(4).integers(10, 60_000, (4, *SHAPE)).astype(np.uint16)


@pytest.fixture
def bundle(tmp_path, images):
    folder = write_xenium(tmp_path / "s", image=images[0])
    (folder / "morphology_mip.ome.tif").unlink()
    return folder


def read(folder, **settings):
    (section,) = XeniumReader(**settings).sections(folder, 0.0)
    return section


def same(plane, image):
    assert plane.shape == image.shape
    for box in Box(0, image.shape[0], 0, image.shape[1]).tiles(31, 37):
        np.testing.assert_array_equal(plane.read(box), image[box.slices()])


def xml(names, *, files=(), own=0, z=1, pixel_um=PIXEL_UM, order="XYZCT") -> str:
    """OME-XML of a set of files, one a channel, or of one file."""
    channels = "".join(f'<Channel ID="Channel:{index}" Name="{name}"/>' for index, name in enumerate(names))
    data = "".join(
        f'<TiffData FirstC="{index}" IFD="0" PlaneCount="1"><UUID FileName="{name}">{number}</UUID></TiffData>'
        for index, (name, number) in enumerate(files)
    )
    uuid_ = f'UUID="{files[own][1]}"' if files else ""
    return (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {uuid_}><Image><Pixels '
        f'SizeX="{SHAPE[1]}" SizeY="{SHAPE[0]}" SizeZ="{z}" SizeC="{len(names)}" SizeT="1" DimensionOrder="{order}" '
        f'PhysicalSizeX="{pixel_um}" PhysicalSizeY="{pixel_um}">{channels}{data or "<TiffData/>"}'
        "</Pixels></Image></OME>"
    )


def write_set(folder, images, names, files, **storage):
    """A multi-file OME-TIFF as the instrument writes it: a pyramid and the whole set's XML in every file."""
    (folder / "morphology_focus").mkdir()
    pairs = [(name, f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}") for name in files]
    for index, (name, _) in enumerate(pairs):
        with tifffile.TiffWriter(folder / "morphology_focus" / name) as tif:
            options = {"tile": (32, 32), "metadata": None, **storage}
            tif.write(images[index], subifds=1, description=xml(names, files=pairs, own=index), **options)
            tif.write(images[index][::2, ::2], subfiletype=1, **options)


@pytest.mark.parametrize("compression", ["jpeg2000", "zlib"])
@pytest.mark.parametrize("version", [2, 4])
def test_a_file_a_channel(bundle, images, version, compression):
    """Lossless JPEG 2000 pyramids, of which the full size is read, and the file that the XML says, not its place."""
    files = [f"morphology_focus_{index:04}.ome.tif" for index in range(4)]
    if version == 4:
        files = ["ch0000_dapi.ome.tif", "ch0001_boundary.ome.tif", "ch0002_18s.ome.tif", "ch0003_vimentin.ome.tif"]
    write_set(bundle, images, NAMES, files, compression=compression)
    section = read(bundle)
    assert tuple(stain.name for stain in section.stains) == NAMES
    for stain, image in zip(section.stains, images, strict=True):
        same(stain.plane, image)
    assert section.provenance["images"] == dict(zip(NAMES, files, strict=True))
    copy = pickle.loads(pickle.dumps(section))
    assert found(copy) == found(section)
    same(copy.stains[3].plane, images[3])


def test_18s_stands_in_for_polyt(bundle, images):
    write_set(bundle, images, NAMES, [f"morphology_focus_{index:04}.ome.tif" for index in range(4)])
    section = read(bundle, stains=("dapi", "PolyT"))
    assert [stain.name for stain in section.stains] == ["DAPI", "PolyT"]
    same(section.stains[1].plane, images[2])
    assert section.provenance["images"]["PolyT"] == "morphology_focus_0002.ome.tif"
    with pytest.raises(InputError, match=r"has stains DAPI, .* not PolyA"):
        read(bundle, stains=("PolyA",))


def test_files_that_were_renamed_or_left_out(bundle, images):
    """A file is known by its UUID where its name changed, and a part of the set is enough."""
    write_set(bundle, images, NAMES, [f"morphology_focus_{index:04}.ome.tif" for index in range(4)])
    focus = bundle / "morphology_focus"
    (focus / "morphology_focus_0000.ome.tif").unlink()
    (focus / "morphology_focus_0001.ome.tif").unlink()
    (focus / "morphology_focus_0002.ome.tif").rename(focus / "zzz.ome.tif")
    section = read(bundle)
    assert [stain.name for stain in section.stains] == ["AlphaSMA/Vimentin", "18S"]
    same(section.stains[1].plane, images[2])


def test_metadata_kept_in_a_sibling(bundle, images):
    names = ("DAPI", "18S")
    write_set(bundle, images[:2], names, ["a.ome.tif", "b.ome.tif"])
    only = '<OME UUID="urn:uuid:1"><BinaryOnly MetadataFile="a.ome.tif" UUID="urn:uuid:0"/></OME>'
    tifffile.imwrite(bundle / "morphology_focus" / "b.ome.tif", images[1], description=only, metadata=None)
    assert [stain.name for stain in read(bundle).stains] == ["DAPI", "18S"]
    (bundle / "morphology_focus" / "a.ome.tif").unlink()
    with pytest.raises(MissingFileError, match=r"keeps its metadata in a.ome.tif, which is not beside it"):
        read(bundle)


@pytest.mark.parametrize(("order", "z"), [("XYZCT", 1), ("XYCZT", 3), ("XYZCT", 3)])
def test_one_file_of_several_channels_and_planes(bundle, images, order, z):
    planes = {(channel, plane): images[channel] // (plane + 1) for channel in range(2) for plane in range(z)}
    inner, outer = (range(z), range(2)) if order == "XYZCT" else (range(2), range(z))
    pages = [planes[(b, a) if order == "XYZCT" else (a, b)] for b in outer for a in inner]
    text = xml(("DAPI", "18S"), z=z, order=order)
    with tifffile.TiffWriter(bundle / "morphology_focus.ome.tif") as tif:
        for index, page in enumerate(pages):
            tif.write(page, description=text if not index else None, metadata=None, compression="zlib")
    section = read(bundle)
    assert [stain.name for stain in section.stains] == ["DAPI", "18S"]
    for channel, stain in enumerate(section.stains):
        same(stain.plane, np.max([planes[channel, plane] for plane in range(z)], axis=0))


def test_channels_without_names_and_what_tifffile_writes(bundle, images):
    tifffile.imwrite(bundle / "morphology_focus.ome.tif", images[:3], metadata={"axes": "CYX"}, tile=(32, 32))
    section = read(bundle)
    assert [stain.name for stain in section.stains] == ["DAPI", "boundary", "18S"]
    same(section.stains[1].plane, images[1])


def test_images_that_do_not_belong_together(bundle, images):
    write_set(bundle, [images[0], images[1][:50]], ("DAPI", "18S"), ["a.ome.tif", "b.ome.tif"])
    with pytest.raises(InputError, match=r"has \(50, 90\) pixels, channel DAPI has \(70, 90\)"):
        read(bundle)


def test_metadata_of_a_plain_tiff(tmp_path, images):
    tifffile.imwrite(tmp_path / "i.tif", images[0], metadata=None)
    assert describe(tmp_path / "i.tif").channels[0].pages == (0,)
    tifffile.imwrite(tmp_path / "i.tif", images[0], metadata=None, description="<OME><Image></OME>")
    with pytest.raises(FormatError, match="is broken"):
        describe(tmp_path / "i.tif")


# tables


def rewrite(folder, **columns):
    table = pq.read_table(folder / "transcripts.parquet")
    for name, column in columns.items():
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table if column is None else table.append_column(name, pa.array(column))
    pq.write_table(table, folder / "transcripts.parquet")


@pytest.fixture
def simple(tmp_path):
    return write_xenium(tmp_path / "s")


def test_old_tables_hold_bytes(simple):
    expected = found(read(simple))
    rewrite(simple, feature_name=[name.encode() for name in ("A", "B", "C")] * 200)
    assert found(read(simple)) == expected


def test_a_gzipped_csv_serves_as_well(simple):
    expected = found(read(simple))
    frame = pd.read_parquet(simple / "transcripts.parquet").assign(is_gene=True)
    with gzip.open(simple / "transcripts.csv.gz", "wt") as file:
        frame.to_csv(file, index=False)
    (simple / "transcripts.parquet").unlink()
    section = read(simple)
    assert found(section) == expected
    assert section.expected_batches is None
    (simple / "transcripts.csv.gz").write_bytes((simple / "transcripts.csv.gz").read_bytes()[:5000])
    with pytest.raises(FormatError, match=r"transcripts\.csv\.gz is damaged"):
        found(read(simple))


def test_the_viewer_s_zarr_is_refused_by_name(simple):
    (simple / "transcripts.parquet").rename(simple / "transcripts.zarr.zip")
    with pytest.raises(MissingFileError, match=r"transcripts.zarr.zip is made for viewing and not read, copy"):
        read(simple)


def test_newer_columns_say_what_is_a_gene(simple):
    flags = [index % 6 != 0 for index in range(600)]
    rewrite(simple, is_gene=flags)
    assert dropped(read(simple)) == {"no gene by is_gene": 100}
    kinds = ["predesigned_gene", "custom_gene", "genomic_control_codeword"] * 200
    rewrite(simple, is_gene=None, codeword_category=kinds)
    section = read(simple)
    assert dropped(section) == {"no gene by codeword_category": 200}
    assert {gene for gene, *_ in found(section)} == {"A", "B"}


def test_quality_is_used_where_there_is_one(simple):
    rewrite(simple, qv=[10.0, 20.0, 40.0] * 200)
    assert dropped(read(simple)) == {"qv below 20": 200}
    assert dropped(read(simple, min_qv=30.0)) == {"qv below 30": 400}
    rewrite(simple, qv=None)
    section = read(simple)
    assert dropped(section) == {}
    assert section.provenance["notices"] == ["transcripts.parquet has no qv: all were kept"]


def test_all_faults_of_a_bundle_come_at_once(simple):
    (simple / "experiment.xenium").write_text('{"pixel_size": "wide"}')
    (simple / "gene_panel.json").write_text('{"payload": 3}')
    (simple / "morphology_mip.ome.tif").write_text("no image")
    rewrite(simple, qv=["high"] * 600, y_location=None)
    with pytest.raises(FaultsError) as caught:
        read(simple)
    assert [fault.file.name for fault in caught.value.faults] == [
        "experiment.xenium", "transcripts.parquet", "transcripts.parquet", "gene_panel.json", "morphology_mip.ome.tif",
    ]  # fmt: skip
    assert "column qv: expected numbers, got" in str(caught.value)
