"""Looking over a brain store before anyone trains on it: counts, densities, and what may be wrong."""
