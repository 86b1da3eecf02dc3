"""Samplers: from noise and genes to a volume."""

import tera_mind.baselines  # noqa: F401 (checkpoints of every method can be read where there is a sampler)
