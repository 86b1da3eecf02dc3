"""What the tests of the page share: a server for stores, tissue worth a look, and the picture as an array."""

from __future__ import annotations

import contextlib
import io
import threading

import numpy as np
from PIL import Image

from tera_mind.cli.view import nucleus_segmenter
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.report.viewer.layers import open_scene
from tera_mind.report.viewer.server import ViewServer

#: everything that is wanted is drawn
READY = "window.viewer && viewer.complete && !viewer.asked && viewer.renderer.store.pending === 0"


@contextlib.contextmanager
def serving(*paths):
    scene = open_scene(paths)
    segmenter = nucleus_segmenter(scene.brain, 8.0) if scene.brain is not None else None
    with ViewServer(scene, segmenter) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def tissue(shape, seed):
    """Nuclei as discs in the first stain, their surroundings in the second."""
    rng = np.random.default_rng(seed)
    stains, sections, height, width = shape
    image = np.full(shape, 12, np.float32)
    y, x = np.mgrid[-15:16, -15:16]
    for section in range(sections):
        for cy, cx in rng.integers(16, (height - 16, width - 16), (height * width // 3000, 2)):
            window = np.s_[section, cy - 15 : cy + 16, cx - 15 : cx + 16]
            image[0][window] = np.maximum(image[0][window], 190 * (np.hypot(y, x) < 8))
            if stains > 1:
                image[1][window] = np.maximum(image[1][window], 120 * (np.hypot(y, x) < 14))
    return np.clip(image + rng.normal(0, 3, shape), 1, 255).astype(np.uint8)


def volume_of(path, brain, image, box, sections):
    return Volume.write(
        path,
        image,
        VolumeAttributes(
            stains=brain.stains, pixel_um=brain.pixel_um, brain=brain.path.name, brain_fingerprint=brain.fingerprint,
            box=box, sections=sections, patch_px=64, checkpoint="ab" * 32, seed=0, steps=15,
        ),
    )  # fmt: skip


def stage(page) -> np.ndarray:
    """The picture area, (y, x, rgb)."""
    page.wait(READY)
    rect = page.run(
        "(() => { const r = viewer.stage.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
    )
    picture = np.asarray(Image.open(io.BytesIO(page.photograph())).convert("RGB"))
    x, y, width, height = map(round, rect)
    return picture[y : y + height, x : x + width]
