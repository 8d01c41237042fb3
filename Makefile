.PHONY: help check lint types test slow bench format

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/	/'

check: lint types  ## what CI checks before the tests

lint:  ## ruff: style, imports, docstrings
	ruff check .
	ruff format --check .

types:  ## mypy, strict
	mypy

test:  ## every quick test
	pytest -n 2

slow:  ## the tests that take minutes
	pytest -m slow -n 2

bench:  ## speed and loss against the peers; needs pip install -e ".[bench]"
	python -m examples.bench

format:  ## let ruff rewrite
	ruff check --fix .
	ruff format .
