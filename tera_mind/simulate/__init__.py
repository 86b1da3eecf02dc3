"""A virtual mouse brain with its truth: any window of any section is a function of (seed, position) alone."""
