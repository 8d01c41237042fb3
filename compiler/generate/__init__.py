"""Language models with a cache: captured, built as a pair of engines, run token by token."""
