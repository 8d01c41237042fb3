"""Judging and timing engines against the original."""
