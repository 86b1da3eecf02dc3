"""Shards behind a server, damaged shards skipped, sparse counts, panels."""

from __future__ import annotations

import logging
import re
import threading
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_brain import GENES, make_brain

from datamodules.loader import log
from datamodules.pairs import PairsDataModule
from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError
from tera_mind.formats import shard_folder
from tera_mind.formats.manifest import Manifest
from tera_mind.formats.shard_folder import ShardFolder
from tera_mind.formats.shard_plan import plan_shards
from tera_mind.formats.shards import write_shards
from tera_mind.model.binning import bin_rows

SMALL = {"patch_px": 16, "bin_px": 4, "batch_size": 6, "crops_per_slab": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    brain = make_brain(folder / "b.zarr", shape=(1, 1, 120, 200), stains=("DAPI",))
    plan = plan_shards([brain], train=":,:60%", val=":,60%:", core_px=32, crop_px=32)
    return write_shards([brain], folder / "s", plan, shard_mb=0.02).folder


def stream(folder, **settings):
    return PairsDataModule(str(folder), **(SMALL | settings)).train_dataloader()


def same(one, other):
    pairs = list(zip(one, other, strict=True))
    return bool(pairs) and all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


class RangeHandler(SimpleHTTPRequestHandler):
    """A plain file server, with range requests or (like Python's own) without."""

    ranges, asked, failures = True, [], 0

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        type(self).asked.append((self.path, wanted and wanted.group()))
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
            return
        if not (self.ranges and wanted):
            super().do_GET()
            return
        with Path(self.translate_path(self.path)).open("rb") as file:
            file.seek(int(wanted[1]))
            data = file.read(int(wanted[2]) + 1 - int(wanted[1]))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(shards, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(shard_folder, "PAUSE_S", 0.01)
    handler = type("Handler", (RangeHandler,), {"asked": []})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(shards)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}", handler
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_remote_folder_streams_the_same_by_ranges(shards, server, num_workers):
    url, handler = server
    assert same(stream(url, num_workers=num_workers), stream(shards))
    tars = [wanted for path, wanted in handler.asked if path.endswith(".tar")]
    assert tars
    assert all(tars)
    Manifest.open(url).verify()


def test_slabs_in_memory_are_not_asked_for_again(shards, server):
    url, handler = server
    remote, local = stream(url), stream(shards)
    assert same(remote, local)
    asked = len(handler.asked)
    assert same(remote, local)  # the second pass, from memory
    assert len(handler.asked) == asked
    assert ShardFolder(url).read_ranges([]) == []


def test_a_changed_index_of_a_remote_folder_is_named(shards, server):
    index = shards / "train.index.npy"
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(FormatError, match=rf"{server[0]}/train\.index\.npy is damaged: its SHA-256"):
            list(stream(server[0]))
    finally:
        index.write_bytes(whole)


def test_a_server_without_ranges_is_named(server):
    url, handler = server
    handler.ranges = False
    with pytest.raises(FormatError, match=rf"{url}/train-00000\d.tar at byte \d+: .*ignores range requests; use one"):
        list(stream(url))


def test_a_remote_read_is_tried_again_and_then_named(shards, server):
    url, handler = server
    manifest = Manifest.open(url)
    handler.failures = 2
    np.testing.assert_array_equal(manifest.read("train", 1).image, Manifest.open(shards).read("train", 1).image)
    handler.failures = 100
    with pytest.raises(FormatError, match=r"train-00000\d.tar at byte \d+ cannot be read \(.*503"):
        manifest.read("train", 1)
    handler.failures = 0
    with pytest.raises(MissingFileError, match=r"no manifest\.json"):
        Manifest.open(f"{url}/nowhere")
    with pytest.raises(InputError, match="cannot be opened"):
        Manifest.open("nosuchscheme://bucket/shards")


def test_any_fsspec_file_system_will_do(shards):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{shards}/*", "/shards/")
    try:
        assert same(stream("memory://shards"), stream(shards))
    finally:
        memory.rm("/shards", recursive=True)
    assert ShardFolder(f"file://{shards}").is_local


@pytest.fixture
def damaged(shards, tmp_path):
    """A copy with a missing shard, a truncated one and a flipped byte; the slabs that are lost."""
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    samples = Manifest.open(shards).splits["train"].samples
    files = list(samples.shards)
    (tmp_path / files[0]).unlink()
    (tmp_path / files[1]).write_bytes((tmp_path / files[1]).read_bytes()[:3000])
    data = bytearray((tmp_path / files[2]).read_bytes())
    data[700] ^= 1
    (tmp_path / files[2]).write_bytes(data)
    lost = {n for n, ref in enumerate(samples) if ref.shard in files[:2]}
    return tmp_path, lost | {next(n for n, ref in enumerate(samples) if ref.shard == files[2])}


def test_lost_slabs_are_skipped_counted_and_named_and_steps_stay_equal(shards, damaged, caplog):
    folder, lost = damaged
    with pytest.raises(FormatError, match="is missing"):
        stream(folder)
    loaders = {workers: stream(folder, on_bad_shard="skip", num_workers=workers) for workers in (0, 2)}
    with caplog.at_level(logging.WARNING, log.name):
        batches = list(loaders[0])
    whole = list(stream(shards))
    assert len(batches) == len(whole)
    assert set(loaders[0].lost) == lost
    assert sum(record.name == log.name for record in caplog.records) == len(lost)
    assert f"{len(lost)} so far" in caplog.text
    assert "is damaged" in caplog.text
    assert "cannot be read (No such file" in caplog.text
    changed = 0
    for ours, theirs in zip(batches, whole, strict=True):  # draws of good slabs are as they were, numbers too
        assert torch.equal(ours["number"], theirs["number"])
        differs = (ours["position"] != theirs["position"]).any(dim=1)
        assert torch.equal(ours["image"][~differs], theirs["image"][~differs])
        changed += int(differs.sum())
    assert 2 * len(lost) <= changed <= 2 * len(lost) + 4  # two crops a slab; four draws of an epoch are repeated
    assert same(loaders[2], batches)
    assert set(loaders[2].lost) == lost
    # what is drawn instead is the same for every rank
    parts = []
    for rank in range(2):
        data = PairsDataModule(str(folder), **SMALL | {"batch_size": 3, "on_bad_shard": "skip"})
        data._rank = lambda rank=rank: (rank, 2)
        parts.append(list(data.train_dataloader()))
    joined = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert same(joined, batches)


def test_validation_skips_too_and_nothing_left_is_an_error(shards, damaged, tmp_path):
    folder, _ = damaged
    for path in folder.glob("val-000001.tar"):
        path.unlink()
    loader = PairsDataModule(str(folder), **SMALL, on_bad_shard="skip").val_dataloader()
    whole = PairsDataModule(str(shards), **SMALL).val_dataloader()
    assert [len(batch["number"]) for batch in loader] == [len(batch["number"]) for batch in whole]
    assert loader.lost
    for path in folder.glob("train-*.tar"):
        path.unlink(missing_ok=True)
    with pytest.raises(FormatError, match=r"\d+ slabs in a row cannot be read; the last: shard .* cannot be read"):
        list(stream(folder, on_bad_shard="skip"))


def test_binning_is_exact_and_needs_no_room_for_genes_times_pixels():
    rng, shape = np.random.default_rng(0), (4, 20_000, 2, 8, 8)
    columns = [rng.integers(0, limit, 500) for limit in (4, 20_000, 2, 128, 128)] + [rng.integers(1, 9, 500)]
    rows = torch.from_numpy(np.stack(columns).astype(np.int32))
    counts = bin_rows(rows, shape, 16)
    expected = np.zeros(shape, np.float32)
    np.add.at(expected, (*rows[:3].numpy(), *(rows[3:5] // 16).numpy()), rows[5].numpy().astype(np.float32))
    np.testing.assert_array_equal(counts, expected)
    assert bin_rows(rows[:, :0], shape, 16).sum() == 0


def test_twenty_thousand_genes_load_as_cheaply_as_few(tmp_path):
    def batch_bytes(genes):
        names = [f"g{number}" for number in range(genes)]
        brain = make_brain(tmp_path / f"{genes}.zarr", shape=(1, 1, 64, 64), stains=("DAPI",), genes=names, rows=300)
        folder = write_shards([brain], tmp_path / str(genes), plan_shards([brain], core_px=32, crop_px=32)).folder
        data = PairsDataModule(str(folder), **SMALL)
        loader = data.train_dataloader()
        loader.finish = lambda batch: batch  # as under a Trainer
        tracemalloc.start()
        batches = list(loader)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert data.complete(batches[0])["genes"].shape == (6, genes, 1, 8, 8)
        return peak, sum(tensor.nbytes for batch in batches for tensor in batch.values())

    few, many = batch_bytes(5), batch_bytes(20_000)
    assert many[1] < 1.1 * few[1]
    assert many[0] < few[0] + 4e6  # names, and no 20,000 x 32 x 32 numbers (80 MB a pair)


def test_a_panel_is_a_file_a_list_or_what_is_shared(shards, tmp_path):
    file = tmp_path / "panel.txt"
    file.write_text("# markers\nVip\n\nGad2  # interneurons\n")
    whole = next(iter(stream(shards)))["genes"]
    data = PairsDataModule(str(shards), **SMALL, genes=str(file))
    assert data.inputs == PairsDataModule(str(shards), **SMALL, genes=["Vip", "Gad2"]).inputs
    assert data.inputs.genes == ("Vip", "Gad2")
    assert torch.equal(next(iter(data.train_dataloader()))["genes"], whole[:, [4, 1]])
    assert PairsDataModule(str(shards), **SMALL, genes="shared").inputs.genes == tuple(GENES)
    with pytest.raises(MissingFileError, match=r"panel of genes in .*none\.txt"):
        PairsDataModule(str(shards), **SMALL, genes=str(tmp_path / "none.txt"))
    file.write_text("Vip\nSst\n")
    with pytest.raises(PanelMismatchError, match="lack 1 of the 2 genes asked for: Sst"):
        PairsDataModule(str(shards), **SMALL, genes=str(file))
    for bad in ([], ["Vip", "Vip"]):
        with pytest.raises(InputError, match="at least one gene and none twice"):
            PairsDataModule(str(shards), **SMALL, genes=bad)


def test_shards_reports_how_much_of_the_panel_every_brain_has(tmp_path, capsys):
    for name, genes in (("one", GENES), ("two", ("Vip", "Sst", "Aqp4"))):
        make_brain(tmp_path / f"{name}.zarr", shape=(1, 1, 64, 64), stains=("DAPI",), genes=genes, rows=50)
    command = ["shards", *(str(tmp_path / f"{name}.zarr") for name in ("one", "two")), "--out", str(tmp_path / "out")]
    sizes = ["--core-px", "32", "--crop-px", "32", "--dry-run"]
    assert main([*command, *sizes]) == 2
    assert main([*command, *sizes, "--common-genes"]) == 0
    said = capsys.readouterr().out
    assert "one.zarr: 2 of its 5 genes are in the panel" in said
    assert "two.zarr: 2 of its 3 genes are in the panel" in said
