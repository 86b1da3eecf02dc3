"""How fast this machine runs a network, where the time goes, and what a brain costs on it."""
