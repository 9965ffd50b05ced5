"""Data sets for training: folders of aligned faces and what is derived from them."""
