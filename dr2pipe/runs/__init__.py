"""Folder runs: what happens between a folder of pictures and a folder of results."""
