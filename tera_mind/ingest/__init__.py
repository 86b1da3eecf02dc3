"""Readers of instrument output, into the brain store."""
