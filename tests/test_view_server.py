"""The viewer's server: tiles are the stores' bytes, ranges are exact, strangers and wrong paths are refused."""

from __future__ import annotations

import http.client
import json
import re
import threading

import numpy as np
import pytest
from viewer_stores import SECTIONS, make_stores

from tera_mind.cli.view import nucleus_segmenter
from tera_mind.formats.brain import Brain
from tera_mind.formats.maps import Map
from tera_mind.formats.volume import Volume
from tera_mind.report.viewer.layers import open_scene
from tera_mind.report.viewer.ranges import UnsatisfiableError, byte_range
from tera_mind.report.viewer.server import ViewServer


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def server(stores):
    scene = open_scene([stores / name for name in ("brain.zarr", "generated.zarr", "uncertainty.zarr")])
    segmenter = nucleus_segmenter(scene.brain, 8.0)
    with ViewServer(scene, segmenter, 0, ["https://viewer.example.org"]) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path: str, method="GET", **headers):
    """(status, headers, body); the path goes out exactly as given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_and_its_parts_are_served_and_name_no_other_host(server):
    status, headers, page = ask(server, "/")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    parts = re.findall(rb'(?:src|href)="(/static/[^"]+)"', page)
    assert parts
    seen = set()
    while parts:
        part = parts.pop()
        if part in seen:
            continue
        seen.add(part)
        status, headers, text = ask(server, part.decode())
        assert status == 200, part
        assert headers["Content-Type"].startswith(("text/javascript", "text/css"))
        assert b"//cdn" not in text
        assert not re.search(rb"https?://", text)
        parts += [b"/static/" + name for name in re.findall(rb'from "\./([a-z_]+\.js)"', text)]
    assert b"/static/render.js" in seen


def test_manifest_says_what_the_stores_hold(server, stores):
    _, _, body = ask(server, "/manifest.json")
    manifest = json.loads(body)
    assert (manifest["height"], manifest["width"], manifest["pixel_um"]) == (500, 900, 0.4)
    brain, generated, uncertainty = manifest["layers"]
    assert (brain["kind"], brain["box"], brain["sections"]) == ("real", [0, 500, 0, 900], [0, 1, 2])
    assert (generated["kind"], generated["box"], generated["sections"]) == ("generated", [30, 400, 100, 700], [2, 0])
    assert generated["levels"] == [[370, 600], [185, 300], [93, 150]]
    assert (uncertainty["kind"], uncertainty["step_px"], uncertainty["ranges"]) == ("map", 32, [[0, 10]])
    names = [section.name for section in Brain.open(stores / "brain.zarr").sections]
    assert [section["name"] for section in manifest["sections"]] == names
    assert [stain["name"] for stain in manifest["stains"]] == ["DAPI", "PolyT"]
    assert manifest["nuclei"]["stain"] == "DAPI"


def test_every_tile_of_a_volume_is_the_arrays_bytes(server, stores):
    volume = Volume.open(stores / "generated.zarr")
    image = volume.image()
    for channel in range(2):
        for plane, section in enumerate(SECTIONS):
            whole = np.zeros((370, 600), np.uint8)
            for row in range(2):
                for column in range(3):
                    status, _, body = ask(server, f"/tile/generated/0/{section}/{row}/{column}?stain={channel}")
                    target = whole[row * 256 : (row + 1) * 256, column * 256 : (column + 1) * 256]
                    if status == 204:
                        assert (channel, plane, row, column, body) == (0, 0, 0, 1, b"")
                        continue
                    assert status == 200
                    target[:] = np.frombuffer(body, np.uint8).reshape(target.shape)
            np.testing.assert_array_equal(whole, image[channel, plane])


def test_coarse_tiles_are_the_pyramid(server, stores):
    brain = Brain.open(stores / "brain.zarr")
    _, _, body = ask(server, "/tile/brain/2/1/0/0?stain=1")
    np.testing.assert_array_equal(np.frombuffer(body, np.uint8).reshape(125, 225), brain.overview(2)[1, 1])


def test_map_tiles_are_the_stored_map(server, stores):
    opened = Map.open(stores / "uncertainty.zarr")
    _, _, body = ask(server, "/tile/uncertainty/0/2/0/0?stain=0")
    shown = opened.attributes.decode(np.frombuffer(body, np.uint8).reshape(12, 19), 0)
    np.testing.assert_array_equal(shown, opened.values()[0, 0])


@pytest.mark.parametrize(
    "path",
    [
        "/tile/nobody/0/0/0/0", "/tile/brain/9/0/0/0", "/tile/brain/0/7/0/0", "/tile/brain/0/0/2/0",
        "/tile/brain/0/0/0/4",
        "/tile/brain/0/0/0/0?stain=2", "/tile/brain/0/0/-1/0", "/tile/brain/0/0/0", "/tile/brain/0/0/0/x",
        "/tile/brain/0/0/0/9999999999999", "/outline/uncertainty/0/0/0/0", "/outline/brain/2/0/0/0", "/nothing",
        "/tile", "/static/server.py", "/static/../server.py", "/static/", "/data/nobody/zarr.json", "/data", "/%ff",
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_in_one_line(server, path):
    status, headers, body = ask(server, path)
    assert status in {400, 404}
    assert headers["Content-Type"].startswith("text/plain")
    assert body.count(b"\n") == 1
    assert b"Traceback" not in body


def test_files_are_the_stores_own(server, stores):
    for name in ("zarr.json", "images/zarr.json", "images/0/c/0/0/0/0"):
        status, headers, body = ask(server, f"/data/brain/{name}")
        assert (status, headers["Accept-Ranges"]) == (200, "bytes")
        assert body == (stores / "brain.zarr" / name).read_bytes()
        assert ask(server, f"/data/brain/{name}", "HEAD")[1]["Content-Length"] == str(len(body))


def test_ranges_of_a_file(server, stores):
    name = "images/0/c/0/0/0/0"
    whole = (stores / "brain.zarr" / name).read_bytes()
    size = len(whole)
    for header, first, end in (
        ("bytes=0-0", 0, 1), ("bytes=5-99", 5, 100), ("bytes=7-", 7, size), ("bytes=-20", size - 20, size),
        (f"bytes=-{size + 5}", 0, size), (f"bytes={size - 1}-{size + 10**9}", size - 1, size),
    ):  # fmt: skip
        status, headers, body = ask(server, f"/data/brain/{name}", Range=header)
        assert status == 206, header
        assert body == whole[first:end]
        assert headers["Content-Range"] == f"bytes {first}-{end - 1}/{size}"
        status, headers, body = ask(server, f"/data/brain/{name}", "HEAD", Range=header)
        assert (status, headers["Content-Length"], body) == (206, str(end - first), b"")
    for header in (f"bytes={size}-", "bytes=-0", f"bytes={size + 9}-{size + 10}"):
        status, headers, _ = ask(server, f"/data/brain/{name}", Range=header)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    for header in ("bytes=0-1,4-5", "bytes=9-3", "pages=1-2", "bytes=a-b", "bytes=-", f"bytes={'9' * 5000}-"):
        assert ask(server, f"/data/brain/{name}", Range=header)[::2] == (200, whole), header


def test_ranges_against_brute_force():
    """Every range of small files, against the definition byte by byte."""
    for size in range(4):
        data = bytes(range(size))
        for first in range(5):
            for last in range(5):
                meant = bytes(byte for byte in data if first <= byte <= last)
                header = f"bytes={first}-{last}"
                if last < first:
                    assert byte_range(header, size) is None
                elif not meant:
                    with pytest.raises(UnsatisfiableError):
                        byte_range(header, size)
                else:
                    assert data[slice(*byte_range(header, size))] == meant
            tail = f"bytes=-{first}"
            if first == 0 or size == 0:
                with pytest.raises(UnsatisfiableError):
                    byte_range(tail, size)
            else:
                assert data[slice(*byte_range(tail, size))] == data[-first:]


@pytest.mark.parametrize(
    "path",
    ["../secret", "images/../../secret", "%2e%2e/secret", "..%2fsecret", "%2e%2e%2fsecret", "link", "/etc/passwd",
     "%2fetc%2fpasswd", "images", "", "a%00b", "..\\secret", "%2e/zarr.json", "images//zarr.json", "loop"],
)  # fmt: skip
def test_no_path_leads_out_of_a_store(server, stores, path):
    (stores / "secret").write_text("secret")
    for name, target in (("link", "../secret"), ("loop", "loop")):
        link = stores / "brain.zarr" / name
        if not link.is_symlink():
            link.symlink_to(target)
    status, _, body = ask(server, f"/data/brain/{path}")
    assert status == 404
    assert b"secret" not in body


@pytest.mark.parametrize(
    "host", ["evil.example.org", "127.0.0.1.evil.example.org", "evil.org:80", "", "127.0.0.1@evil.org"]
)
def test_other_hosts_are_refused(server, host):
    for path in ("/", "/manifest.json", "/data/brain/zarr.json", "/tile/brain/0/0/0/0"):
        assert ask(server, path, Host=host)[0] == 421
    for good in ("localhost", "localhost:9000", "127.0.0.1:8765", "[::1]:1"):
        assert ask(server, "/manifest.json", Host=good)[0] == 200


def test_only_allowed_origins_may_read_files(server):
    for origin in ("https://viewer.example.org", "http://localhost:3000", "http://127.0.0.1:8000"):
        _, headers, _ = ask(server, "/data/brain/zarr.json", Origin=origin)
        assert headers["Access-Control-Allow-Origin"] == origin
        status, headers, _ = ask(server, "/data/brain/zarr.json", "OPTIONS", Origin=origin)
        assert (status, headers["Access-Control-Allow-Headers"]) == (204, "Range")
    for origin in (
        "https://evil.example.org",
        "null",
        "https://viewer.example.org.evil.org",
        "http://localhost.evil.org",
    ):
        assert "Access-Control-Allow-Origin" not in ask(server, "/data/brain/zarr.json", Origin=origin)[1]
        assert ask(server, "/data/brain/zarr.json", "OPTIONS", Origin=origin)[0] == 405
    assert "Access-Control-Allow-Origin" not in ask(server, "/manifest.json", Origin="https://viewer.example.org")[1]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(server, method):
    assert ask(server, "/data/brain/zarr.json", method)[0] in {405, 501}
