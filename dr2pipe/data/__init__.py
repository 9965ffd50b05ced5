"""Data sets for training: folders of aligned faces, and pairs, masks and landmarks for them."""
