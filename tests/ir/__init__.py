"""One file per file of ``ir/``."""
