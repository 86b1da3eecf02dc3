"""Which nuclei of two segmentations of one image are the same: one to one, by intersection over union.

F1 at an intersection over union of 0.5 is the detection score of the nucleus segmentation literature: Caicedo et al.,
Nature Methods 16 (2019); Schmidt et al., MICCAI 2018.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tera_mind.errors import InputError
from tera_mind.geometry import Box

Labels = Int[np.ndarray, "y x"]


class Matches(NamedTuple):
    """Numbers of matched pairs and of nuclei on either side; those of disjoint cores add up."""

    tp: int
    a: int
    b: int

    @property
    def f1(self) -> float:
        """2 tp / (a + b); 1 where neither side has a nucleus."""
        return 2 * self.tp / (self.a + self.b) if self.a + self.b else 1.0


def same_nuclei(a: Labels, b: Labels, iou: float = 0.5) -> Int[np.ndarray, "pair 2"]:
    """Pairs of labels (of a, of b), one to one, whose intersection over union is at least `iou` (0.5 to 1).

    Above 0.5 a partner is unique. At exactly 0.5 a nucleus may have two, its halves: the smaller label is taken.
    Raises `InputError` for an `iou` at which partners would have to be chosen.
    """
    if not 0.5 <= iou <= 1:
        raise InputError(f"nuclei are matched at an intersection over union of 0.5 to 1, got {iou:g}")
    both = np.flatnonzero((a.ravel() > 0) & (b.ravel() > 0))
    width = int(b.max(initial=0)) + 1
    joint, shared = np.unique(a.ravel()[both].astype(np.int64) * width + b.ravel()[both], return_counts=True)
    first, second = np.divmod(joint, width)
    union = np.bincount(a.ravel())[first] + np.bincount(b.ravel())[second] - shared
    enough = shared >= iou * union
    pairs = np.stack([first[enough], second[enough]], axis=1)
    for side in (0, 1):
        pairs = pairs[np.unique(pairs[:, side], return_index=True)[1]]
    return pairs


def match(labels_a: Labels, labels_b: Labels, core: Box | None = None, iou: float = 0.5) -> Matches:
    """Matched nuclei of two segmentations of one image.

    With a `core` (pixels of the image), nuclei count whose centroid lies in it, and a pair where that of `labels_a`
    does, so that cores that cut an image into parts add up to the image.
    """
    pairs = same_nuclei(labels_a, labels_b, iou)
    a, b = (_inside(labels, core) for labels in (labels_a, labels_b))
    return Matches(int(a[pairs[:, 0]].sum()), int(a.sum()), int(b.sum()))


def _inside(labels: Labels, core: Box | None) -> Bool[np.ndarray, " label"]:
    """Which labels exist and have their centroid in the core."""
    inked = np.flatnonzero(labels)
    label = labels.ravel()[inked]
    area = np.bincount(label, minlength=int(labels.max(initial=0)) + 1)
    inside = area > 0
    if core is not None:
        row, column = np.divmod(inked, labels.shape[1])
        y, x = (np.bincount(label, axis, minlength=len(area)) / np.maximum(area, 1) for axis in (row, column))
        inside &= (y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1)
    return inside
