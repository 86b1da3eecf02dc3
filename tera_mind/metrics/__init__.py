"""Measures of fidelity, seams and nuclei, and the controls beside them."""
