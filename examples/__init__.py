"""Runnable examples on one real model: sentences, MiniLM, and a benchmark against its peers."""
