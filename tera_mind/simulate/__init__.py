"""Simulated tissue with its truth."""
