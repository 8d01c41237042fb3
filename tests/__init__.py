"""Tests. ``pytest`` runs all but the slow ones; ``pytest -m slow`` runs those."""
