"""Runnable examples on real models: MiniLM, a classifier on it, a small language model; and benchmarks."""
