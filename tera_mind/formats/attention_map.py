"""What the channels of an attention map are called; those of genes bear the genes' names.

What they hold: `tera_mind.analysis.readout`.
"""

from __future__ import annotations

ATTENTION, UNWEIGHTED, PRODUCT = "attention", "attention, unweighted", "product of expression"
PREVIOUS, NEXT = "attention, previous-current", "attention, current-next"
