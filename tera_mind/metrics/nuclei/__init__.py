"""Nuclei: finding them, measuring them, comparing them with the real ones."""
