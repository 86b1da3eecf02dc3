"""Interventions: edits of gene counts before generation, where they apply, and how far they can reach."""
