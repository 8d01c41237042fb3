"""Predicted time and memory on machines that need not be here."""
