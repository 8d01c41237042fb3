"""What "supported" means: each engine against the reference meaning, cell by cell. ``python -m tests.conformance``."""
