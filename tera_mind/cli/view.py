"""`tera-mind view`: the deep-zoom viewer, served on this machine only."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tera_mind.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tera_mind.formats.brain import Brain
    from tera_mind.report.viewer.outlines import Segmenter

#: the real tissue on which the nucleus threshold is measured: at most so many windows of this side, a section
SAMPLE_WINDOWS, SAMPLE_PX = 12, 512

_DESCRIPTION = """\
Look at real and generated tissue at any zoom, in a browser: side by side with linked views, as an overlay, under a
curtain, or as a difference; with stain colours, sections, outlines of nuclei, and maps (such as uncertainty) on top.
Give brain stores, generated volumes and maps of one brain in any order. The page and all its parts come from this
machine and nothing is sent elsewhere. Ctrl-C ends it."""

_EPILOG = """\
examples:
  tera-mind view brain.zarr generated.zarr
  tera-mind view generated.zarr shuffled.zarr --brain brain.zarr --port 0
on a remote machine, tunnel the port and open the address at home:
  ssh -L 8765:127.0.0.1:8765 HOST tera-mind view brain.zarr generated.zarr --no-browser
other viewers (of OME-Zarr) can open http://127.0.0.1:8765/data/LAYER/ where --allow-origin names their site"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind view",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="brain store, generated volume or map")
    parser.add_argument("--brain", type=Path, metavar="BRAIN", help="brain store, if it is not among the stores")
    parser.add_argument("--port", type=int, default=8765, help="port on 127.0.0.1, 0 for any free one (default 8765)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser, only serve")
    parser.add_argument("--print-url", action="store_true", help="print the address alone, for scripts; no browser")
    parser.add_argument(
        "--nucleus-um", type=float, default=8.0, help="typical nucleus diameter in um (default %(default)s)"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web site, such as https://example.org, whose scripts may read the stores' files (default: none)",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C (or SIGTERM), which is the normal end: exit code 0."""
    options = build_parser().parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise InputError(f"a port is a number from 0 to 65535, got {options.port}")
    if not 1 <= options.nucleus_um <= 100:
        raise InputError(f"a nucleus is 1 to 100 um wide, got {options.nucleus_um:g}")
    for origin in options.allow_origin:
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise InputError(f"an origin is a scheme and a host, such as https://example.org, got {origin!r}")

    from tera_mind.report.viewer.layers import open_scene
    from tera_mind.report.viewer.server import ViewServer

    given = [options.brain] if options.brain is not None else []
    brains = {path.resolve() for path in given}
    scene = open_scene([*given, *(path for path in options.stores if path.resolve() not in brains)])
    segmenter = nucleus_segmenter(scene.brain, options.nucleus_um) if scene.brain is not None else None
    with ViewServer(scene, segmenter, options.port, options.allow_origin) as server:
        print(server.url if options.print_url else f"viewer: {server.url}  (Ctrl-C ends it)", flush=True)
        if not (options.no_browser or options.print_url) and _has_screen():
            webbrowser.open(server.url)
        # SIGINT too: a shell that starts a command in the background has it ignored
        before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _has_screen() -> bool:
    """Whether a browser would open in a window; in a bare terminal it would take the terminal over."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def nucleus_segmenter(brain: Brain, nucleus_um: float) -> Segmenter | None:
    """The evaluation's watershed, its brightness scale measured on a sample of each real section; None without DAPI."""
    from functools import cache

    from tera_mind.metrics.nuclei.segmenters import NucleusSettings, Scale, Watershed
    from tera_mind.report.viewer.outlines import Segmenter

    names = [stain.lower() for stain in brain.stains]
    if "dapi" not in names:
        return None
    stain = names.index("dapi")
    watershed = Watershed(brain.pixel_um, NucleusSettings(diameter_um=nucleus_um))

    @cache
    def scale(section: int) -> Scale:
        return watershed.calibrate(tissue_sample(brain, section, stain))

    def labels(section: int, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        return watershed.segment(image, scale(section))

    return Segmenter(labels, brain.stains[stain], nucleus_um / brain.pixel_um, watershed.halo_px)


def tissue_sample(brain: Brain, section: int, stain: int) -> Iterator[NDArray[np.uint8]]:
    """At most `SAMPLE_WINDOWS` windows of a section's tissue, evenly chosen: (y, x) uint8 of up to `SAMPLE_PX`."""
    import numpy as np

    from tera_mind.formats.tissue import CELL_PX

    tissue = brain.tissue(section)
    everything = list(brain.canvas.tiles(SAMPLE_PX, SAMPLE_PX))
    full = [
        box
        for box in everything
        if tissue[box.y0 // CELL_PX : -(-box.y1 // CELL_PX), box.x0 // CELL_PX : -(-box.x1 // CELL_PX)].mean() >= 0.5
    ]
    windows = full or everything
    for index in np.unique(np.linspace(0, len(windows) - 1, min(len(windows), SAMPLE_WINDOWS)).astype(int)):
        yield brain.image(windows[index], [section])[stain, 0]
