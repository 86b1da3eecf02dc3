"""What a network gives must be numbers: broken weights, or an overflow in bf16, end the work instead of a volume.

The output is looked at, not the image made from it: clamping to [-1, 1] turns infinities into plain white and black.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tera_mind.errors import InputError
from tera_mind.geometry import Box

REMEDY = "its weights are broken or too large for this arithmetic: give --precision 32, or another checkpoint"


class NotFiniteError(InputError):
    """A network gave values that are not finite: it would do so again."""


class Finite:
    """Gathers on the device which outputs are finite; `check` waits for the device, and is called where that is due."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._seen: list[tuple[Sequence[int], Sequence[Box], Tensor]] = []

    def see(self, steps: Sequence[int], boxes: Sequence[Box], outputs: Tensor) -> None:
        """Note outputs (n, ...) for boxes in the brain's pixels and their steps; what fills a pass up is left out."""
        self._seen.append((steps, boxes, torch.isfinite(outputs[: len(boxes)]).flatten(1).all(1)))

    def check(self) -> None:
        """Raise `NotFiniteError` with the first step and box whose output is not finite, of those seen since."""
        seen, self._seen = self._seen, []
        if not seen or bool(torch.cat([fine for *_, fine in seen]).all()):
            return
        steps, boxes, fine = next(each for each in seen if not each[2].all())
        first = int((~fine).nonzero()[0])
        raise NotFiniteError(
            f"the network gave values that are no finite numbers in step {steps[first]} of {self._steps} at pixels "
            f"{boxes[first]}: {REMEDY}"
        )


def check_weights(network: nn.Module, name: str) -> None:
    """Raise `NotFiniteError` where a weight of the network from the file `name` is not finite."""
    for weight, values in network.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise NotFiniteError(
                f"weight {weight} of {name} holds values that are no finite numbers: its training failed or the file "
                "is damaged; give another checkpoint"
            )
