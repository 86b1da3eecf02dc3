"""The gene-morph network."""
