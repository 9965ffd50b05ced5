"""Losses as pure functions; the configurations of the recipes give their weights.

One module per kind, used by its own name: ``reconstruction``, ``perceptual``, ``adversarial``,
``identity``, ``face_parts``, ``inpainting``, ``contrastive``, ``diffusion``, and ``total``, their sum.
"""
