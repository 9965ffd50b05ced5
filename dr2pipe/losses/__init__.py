"""Losses as pure functions; the configurations of the recipes give their weights."""
