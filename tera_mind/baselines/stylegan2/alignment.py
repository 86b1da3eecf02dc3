"""Where the samples of padding-free layers lie, as arithmetic of boxes.

The samples of a layer lie on a grid whose lines have integer numbers on the whole brain: sample i of a grid with twice
as many lines as another is sample i / 2 of that one. A layer's window is a `Box` of such numbers, so neighbouring
windows name the samples that they share alike, whatever their sizes. On the finest grid, number i is pixel i.
"""

from __future__ import annotations

from tera_mind.geometry import Box


def after_corners(bins: Box) -> Box:
    """Window of bin corners between the bins of a window: corner i lies between bins i - 1 and i, at pixel bin_px i."""
    return Box(bins.y0 + 1, bins.y1, bins.x0 + 1, bins.x1)


def after_convolution(window: Box) -> Box:
    """Samples that a 3 x 3 convolution without padding leaves."""
    return window.grow(-1)


def after_upsampling(window: Box) -> Box:
    """Samples of the grid with twice the lines between those of a window: n become 2 n - 1."""
    return Box(2 * window.y0, 2 * window.y1 - 1, 2 * window.x0, 2 * window.x1 - 1)


def layer_windows(first: Box, doublings: int) -> list[Box]:
    """Windows of all styled layers: one convolution, then for each doubling an upsampling one and another.

    `first` is the window that enters the first convolution. The last window is the output's.
    """
    windows = [after_convolution(first)]
    for _ in range(doublings):
        windows.append(after_convolution(after_upsampling(windows[-1])))
        windows.append(after_convolution(windows[-1]))
    return windows
