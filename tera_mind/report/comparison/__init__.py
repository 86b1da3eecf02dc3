"""Several evaluations side by side: read, aligned, tabled and drawn. Reads files; computes no score."""
