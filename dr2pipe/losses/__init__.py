"""Losses as pure functions; their weights stand in the configurations of the recipes."""
