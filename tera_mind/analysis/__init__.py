"""Asking a trained network about tissue: gene-gene attention."""
