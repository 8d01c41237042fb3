"""Artifacts at work: load, check inputs, run, try out."""
