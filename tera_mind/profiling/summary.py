"""Measured speeds as the figures and words that users get: plain JSON, and what limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tera_mind.model.macs import FLOP_A_MAC, Macs
from tera_mind.profiling.cost import Cost
from tera_mind.profiling.measure import InOut, Speed
from tera_mind.profiling.peak import Peak

#: what to do about a class that takes most of the time
_ADVICE = {
    "convolution": "arithmetic of the network's convolutions",
    "linear maps": "arithmetic of the network's linear maps",
    "attention": "attention to genes",
    "normalisation": "memory traffic of normalisation, not arithmetic",
    "elementwise": "memory traffic of elementwise operations, not arithmetic",
    "copies": "memory traffic of copies, not arithmetic",
    "optimiser": "the optimiser: more pairs a step would share its cost",
    "waiting": "waiting between operations: the device has too little to do at once, so try larger blocks or batches",
    "I/O": "reading genes, noise and writing, not the network: a faster disk or fewer bytes, not a faster device",
}


def _speed(speed: Speed, flop: float, peak: Peak) -> dict[str, Any]:
    flop_s = flop / speed.seconds
    return {
        "seconds": speed.seconds,
        "seconds_range": [speed.fastest, speed.slowest],
        "turns": speed.turns,
        "flop": flop,
        "flop_s": flop_s,
        "peak_flop_s": peak.flop_s,
        "peak_source": peak.source,
        "mfu": None if peak.flop_s is None else flop_s / peak.flop_s,
    }


def generation_figures(
    speed: Speed, macs: Macs, patches: int, patch_voxels: int, steps: int, io: InOut, peak: Peak
) -> dict[str, Any]:
    """Figures of passes over so many decoded patches; shares are of all the time of a voxel, its I/O included.

    The FLOP are those that the patches need (`Macs.patch`): what a block computes twice is no useful work.
    """
    voxels = patches * patch_voxels
    figures = _speed(speed, float(FLOP_A_MAC * macs.patch * patches), peak)
    seconds = {kind: value / voxels * 1e6 * steps for kind, value in speed.by_class.items()} | {"I/O": io.total_s}
    return figures | {
        "megavoxel_steps_s": voxels / speed.seconds / 1e6,
        "patches_a_pass": patches,
        "flop_a_patch": FLOP_A_MAC * macs.patch,
        "share": shares(seconds),
    }


def training_figures(speed: Speed, pair_macs: int, pairs: int, peak: Peak) -> dict[str, Any]:
    """Figures of optimiser steps on so many pairs, data loading left out."""
    figures = _speed(speed, float(FLOP_A_MAC * pair_macs * pairs), peak)
    return figures | {
        "pairs_s": pairs / speed.seconds,
        "pairs_a_step": pairs,
        "flop_a_pair": FLOP_A_MAC * pair_macs,
        "share": shares(speed.by_class),
    }


def shares(seconds: Mapping[Any, float]) -> dict[str, float]:
    """Shares of the whole, largest first."""
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {str(kind): value / total for kind, value in ordered}


def bottleneck(figures: Mapping[str, Any]) -> str:
    """One sentence: what takes most of the time, and how near the arithmetic is to its peak."""
    kind, share = next(iter(figures["share"].items()))
    words = f"{kind} takes {100 * share:.0f} % of the time: {_ADVICE[kind]}"
    if figures["mfu"] is None:
        return f"{words}; the device's peak is not known"
    return f"{words}; useful arithmetic runs at {100 * figures['mfu']:.0f} % of the peak"


def cost_figures(cost: Cost) -> dict[str, Any]:
    return asdict(cost) | {"hours": cost.hours}
