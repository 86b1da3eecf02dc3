"""Sweeps: one file of settings into many runs, their stages kept, tabulated and gone on with."""
