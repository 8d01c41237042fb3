"""``python -m tests.conformance``: judge engines, print what is wrong, and with ``--write`` keep the matrix."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.backends.operators import FAMILIES
from tests.conformance import matrix, run


def main() -> int:
    """Exit code 1 when a cell is a mismatch or a crash."""
    parser = argparse.ArgumentParser("python -m tests.conformance", description=__doc__)
    parser.add_argument("--engine", action="append", choices=matrix.ENGINES, help="only this (may be repeated)")
    parser.add_argument("--family", action="append", choices=(*FAMILIES, "regions", "models"), help="only this part")
    parser.add_argument("--write", action="store_true", help="keep what is found in matrix.json and MATRIX.md")
    given = parser.parse_args()
    engines, parts = given.engine or matrix.ENGINES, given.family or (*FAMILIES, "regions", "models")
    made, count = matrix.read(), Counter[tuple[str, str]]()
    for engine, part in itertools.product(engines, parts):
        for row in made.get(part, {}).values():
            row.pop(engine, None)
    for part in parts:
        for section, row, engine, column, verdict in _judged(engines, part):
            made.setdefault(section, {}).setdefault(row, {}).setdefault(engine, {})[column] = verdict
            count[engine, matrix.kind(verdict)] += 1
            if matrix.kind(verdict) in ("mismatch", "crash"):
                sys.stdout.write(f"{engine} {section} {column} {row}: {verdict}\n")
                sys.stdout.flush()
    for part in parts:
        made[part] = {row: engines for row, engines in made.get(part, {}).items() if engines}
    if given.write:
        matrix.write(made)
    for (engine, kind), number in sorted(count.items()):
        sys.stdout.write(f"{engine:12} {kind:9} {number}\n")
    return int(any(kind in ("mismatch", "crash") for _, kind in count))


def _judged(engines: Sequence[str], part: str) -> Iterator[tuple[str, str, str, str, str]]:
    """A part's cells, as they come."""
    jobs = [(engines, part, name) for name in run.names(part)]
    spawn = multiprocessing.get_context("spawn")
    # A worker that an engine takes down ends the run with BrokenProcessPool; a plain pool would wait for ever. Workers
    # are fresh for each part: max_tasks_per_child hangs in Python 3.11 once all of them have reached it.
    with ProcessPoolExecutor(mp_context=spawn) as pool:
        for (_, _, name), found in zip(jobs, pool.map(run.judge, jobs), strict=True):
            sys.stderr.write(f"{part} {name}: {len(found)} cells\n")
            yield from found


if __name__ == "__main__":
    sys.exit(main())
