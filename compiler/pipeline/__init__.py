"""Passes in order, watched: pipeline, instruments, recipes, IR text in and out."""
