"""Compiles that were done before."""
