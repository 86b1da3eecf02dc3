"""Data for training: the stream of slabs and the pairs cut from them."""
