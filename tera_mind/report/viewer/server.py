"""The viewer's server: page, manifest, tiles and the stores' own files, on loopback only, for reading only.

    /                                                         the page; /static/... its scripts and styles
    /manifest.json                                            layers, sections, stains
    /tile/<layer>/<level>/<section>/<row>/<column>?stain=N    a tile as raw bytes (rows of 8-bit grey)
    /outline/<layer>/<level>/<section>/<row>/<column>         distances to the rims of nuclei, alike
    /data/<layer>/...                                         the store's files, with byte ranges, for other viewers

A tile of zeros is answered 204 with no bytes. Requests whose Host is not this machine are refused, so that no web
site can reach the tissue by renaming itself (DNS rebinding); other sites' scripts may read /data only where their
origin was allowed.
"""

from __future__ import annotations

import json
import mimetypes
import re
import socket
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import InputError, TeraMindError
from tera_mind.report.viewer.layers import Scene, manifest
from tera_mind.report.viewer.outlines import Outlines, Segmenter
from tera_mind.report.viewer.ranges import UnsatisfiableError, byte_range
from tera_mind.report.viewer.tiles import Tiles

HOST = "127.0.0.1"
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_LOOPBACK_ORIGIN = re.compile(r"https?://(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
#: everything the page loads lies beside it; nothing from elsewhere, no inline script
_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".json": "application/json"}
_STATIC = re.compile(r"[a-z_]+\.(js|css)")


class ViewServer(ThreadingHTTPServer):
    """Serves one scene until `shutdown`; `url` is where. `port` 0 takes a free one.

    `allowed_origins` are the web sites (such as "https://example.org") whose scripts may read the stores' files.
    Raises `InputError` when the port is taken.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, scene: Scene, segmenter: Segmenter | None = None, port: int = 0, allowed_origins: Sequence[str] = ()
    ) -> None:
        self.scene = scene
        self.tiles = Tiles(scene)
        self.outlines = Outlines(self.tiles, segmenter) if segmenter is not None else None
        nuclei = segmenter.to_json() if segmenter is not None else None
        self.manifest = json.dumps(manifest(scene, nuclei), allow_nan=False).encode()
        self.allowed_origins = frozenset(origin.rstrip("/").lower() for origin in allowed_origins)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot serve on port {port} ({error}); choose another with --port, or any free one with --port 0"
            ) from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection in the middle is no error; anything else is shown as usual."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    def __init__(self, status: HTTPStatus, words: str, **headers: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = f"tera-mind/{__version__}"
    sys_version = ""
    timeout = 60

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Say nothing of requests that went well."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_OPTIONS(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            self._check_host()
            self._route()
        except _RefusedError as refusal:
            self._refuse(refusal)
        except InputError as error:
            self._refuse(_RefusedError(HTTPStatus.NOT_FOUND, str(error)))
        except TeraMindError as error:
            self._refuse(_RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)))

    def _route(self) -> None:
        routes: dict[str, Callable[[list[str], str], None]] = {
            "static": self._static,
            "tile": self._tile,
            "outline": self._outline,
            "data": self._data,
        }
        try:
            address = urlsplit(self.path)
            parts = [unquote(part, errors="strict") for part in address.path.split("/")[1:]]
        except ValueError:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "an address that cannot be read") from None
        if self.command == "OPTIONS":
            self._permit()
        elif parts == [""]:
            self._static(["viewer.html"], "")
        elif parts == ["manifest.json"]:
            self._send(self.server.manifest, _TYPES[".json"])
        elif parts == ["favicon.ico"]:
            self._head(HTTPStatus.NO_CONTENT, None, {})
        elif parts and parts[0] in routes:
            routes[parts[0]](parts[1:], address.query)
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "no such page")

    def _permit(self) -> None:
        """Tell an allowed origin's browser that it may ask for ranges."""
        if not self._origin():
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are served", Allow="GET, HEAD")
        allowed = {"Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Headers": "Range"}
        self._head(HTTPStatus.NO_CONTENT, None, allowed | self._cors())

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _LOOPBACK.fullmatch(hosts[0]):
            raise _RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST, f"this server answers to {HOST} and localhost only, not to {hosts}"
            )

    def _static(self, parts: list[str], _query: str) -> None:
        name = parts[0] if len(parts) == 1 else ""
        if name != "viewer.html" and not _STATIC.fullmatch(name):
            raise _RefusedError(HTTPStatus.NOT_FOUND, "no such file")
        file = resources.files("tera_mind.report.viewer") / name
        if not file.is_file():
            raise _RefusedError(HTTPStatus.NOT_FOUND, "no such file")
        self._send(file.read_bytes(), _TYPES.get(Path(name).suffix, "text/html; charset=utf-8"))

    def _tile(self, parts: list[str], query: str) -> None:
        name, *place = self._place(parts)
        stain = parse_qs(query).get("stain", ["0"])[-1]
        self._send_tile(self.server.tiles.tile(name, *place, _whole(stain)))

    def _outline(self, parts: list[str], _query: str) -> None:
        if self.server.outlines is None:
            raise _RefusedError(
                HTTPStatus.NOT_FOUND, "no nuclei are outlined: their brightness is set by a brain store"
            )
        name, *place = self._place(parts)
        self._send_tile(self.server.outlines.tile(name, *place))

    @staticmethod
    def _place(parts: list[str]) -> tuple[str, int, int, int, int]:
        if len(parts) != 5:
            raise _RefusedError(
                HTTPStatus.NOT_FOUND, "a tile is /tile/<layer>/<level>/<section>/<row>/<column>?stain=N"
            )
        level, section, row, column = (_whole(part) for part in parts[1:])
        return parts[0], level, section, row, column

    def _send_tile(self, tile: NDArray[np.uint8]) -> None:
        if tile.any():
            self._send(tile.tobytes(), "application/octet-stream")
        else:
            self._head(HTTPStatus.NO_CONTENT, None, {})

    def _data(self, parts: list[str], _query: str) -> None:
        layer = self.server.scene.layer(parts[0]) if parts else None
        if layer is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "no such layer")
        path = _inside(layer.store, parts[1:])
        size = path.stat().st_size
        headers = {"Accept-Ranges": "bytes"} | self._cors()
        try:
            wanted = byte_range(self.headers.get("Range"), size)
        except UnsatisfiableError:
            unsatisfiable = {"Content_Range": f"bytes */{size}"} | {k.replace("-", "_"): v for k, v in headers.items()}
            raise _RefusedError(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "beyond the file", **unsatisfiable
            ) from None
        first, end = wanted or (0, size)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        status = HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT
        with path.open("rb") as file:
            self._head(status, end - first, headers | {"Content-Type": kind})
            if self.command == "GET":
                file.seek(first)
                _copy(file, self.wfile, end - first)

    def _origin(self) -> str | None:
        """The asking site, where it may read."""
        origin = self.headers.get("Origin") or ""
        known = _LOOPBACK_ORIGIN.fullmatch(origin) or origin.lower() in self.server.allowed_origins
        return origin if origin and known else None

    def _cors(self) -> dict[str, str]:
        headers = {"Vary": "Origin"}
        if origin := self._origin():
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = "Accept-Ranges, Content-Length, Content-Range"
        return headers

    def _send(self, body: bytes, kind: str) -> None:
        self._head(HTTPStatus.OK, len(body), {"Content-Type": kind})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, length: int | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": _POLICY}
        for name, value in (always | headers).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, refusal: _RefusedError) -> None:
        body = f"{' '.join(refusal.words.split())}\n".encode(errors="replace")
        self._head(refusal.status, len(body), {"Content-Type": "text/plain; charset=utf-8"} | refusal.headers)
        if self.command != "HEAD":
            self.wfile.write(body)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise _RefusedError(HTTPStatus.NOT_FOUND, f"expected a whole number, got {text[:40]!r}")
    return int(text)


def _inside(root: Path, parts: list[str]) -> Path:
    """A file below `root`; links and dots that lead out of it are as good as absent."""
    missing = _RefusedError(HTTPStatus.NOT_FOUND, "no such file in the store")
    if any(part in {"", ".", ".."} or "/" in part or "\\" in part or "\0" in part for part in parts):
        raise missing
    try:
        path = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        raise missing from None
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        raise missing
    return path


def _copy(source: Any, target: Any, length: int) -> None:
    while length > 0:
        piece = source.read(min(length, 1 << 18))
        if not piece:
            raise ConnectionAbortedError("the file became shorter while it was sent")
        target.write(piece)
        length -= len(piece)
