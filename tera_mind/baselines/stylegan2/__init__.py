"""StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) in plain PyTorch: the core of the rivals that are made of it."""
