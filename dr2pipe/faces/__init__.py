"""Whole photos: where faces are, how they are cut out, and how they are put back."""
