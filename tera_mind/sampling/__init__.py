"""Samplers: from noise and genes to a volume."""
