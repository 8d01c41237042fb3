"""Depth that follows the input: exits fitted, thresholds found for a budget, priced, and told."""
