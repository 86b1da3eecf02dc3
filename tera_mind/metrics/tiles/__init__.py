"""Tiles: features of image networks, distances between sets of them, and what they tell of the genes."""
