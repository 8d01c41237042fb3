"""When the host may forget a value: after its last use on the way that was taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from backends.segments.schedule import Branch, Loop, Rows, Run, Side, Step


def with_drops(steps: tuple[Step, ...], kept: Iterable[str], given: Iterable[str] = ()) -> tuple[Step, ...]:
    """The same steps, each with the names that nothing after it reads.

    Args:
        steps: in order.
        kept: names that are read after the last step.
        given: inputs of the model, weights and constants; others own them, they need no dropping.
    """
    made, _ = _walk(steps, frozenset(kept), frozenset(given))
    return made


def reads(steps: tuple[Step, ...]) -> frozenset[str]:
    """Every name that the steps read."""
    found: set[str] = set()
    for step in steps:
        match step:
            case Run():
                found.update(step.inputs)
            case Branch():
                found.add(step.test)
                for side in (step.taken, step.otherwise):
                    found |= reads(side.steps) | set(side.results)
            case Loop():
                found.update(step.start)
                for side in (step.test, step.body):
                    found |= reads(side.steps) | set(side.results)
            case Rows():
                found.update((step.live, *step.given, *reads(step.side.steps), *step.side.results))
    return frozenset(found)


def _walk(
    steps: tuple[Step, ...], after: frozenset[str], given: frozenset[str]
) -> tuple[tuple[Step, ...], frozenset[str]]:
    """Steps with drops, and the names that must be there before the first of them."""
    made: list[Step] = []
    live = after
    for step in reversed(steps):
        match step:
            case Run():
                touched = frozenset((*step.inputs, *step.outputs))
                before = (live - frozenset(step.outputs)) | frozenset(step.inputs)
                step = replace(step, drop=_names(touched - live - given))
            case Branch():
                inner = live - frozenset(step.results)
                taken, first = _side(step.taken, inner, given)
                otherwise, second = _side(step.otherwise, inner, given)
                before = first | second | {step.test}
                step = replace(step, taken=taken, otherwise=otherwise, drop=_names(before - live - given))
            case Loop():
                carried = frozenset(step.carried)
                outer = (reads((step,)) - _made(step)) | live  # a turn must find what the first one found
                test, _ = _side(step.test, outer | carried | _sides(step.body), given)
                body, _ = _side(step.body, outer - carried, given)
                before = (outer - carried) | frozenset(step.start)
                step = replace(step, test=test, body=body, drop=_names((before | carried) - live - given))
            case Rows():
                side, first = _side(step.side, live - frozenset(step.results), given)
                before = (first - frozenset(step.inner)) | {step.live, *step.given}
                step = replace(step, side=side, drop=_names((before | frozenset(step.inner)) - live - given))
        made.append(step)
        live = before
    return tuple(reversed(made)), live


def _side(side: Side, after: frozenset[str], given: frozenset[str]) -> tuple[Side, frozenset[str]]:
    steps, before = _walk(side.steps, after | frozenset(side.results), given)
    return replace(side, steps=steps, drop=_names(frozenset(side.results) - after - given)), before


def _sides(side: Side) -> frozenset[str]:
    return reads(side.steps) | frozenset(side.results)


def _made(step: Step) -> frozenset[str]:
    """Names that a step gives, also within."""
    match step:
        case Run():
            return frozenset(step.outputs)
        case Branch():
            inner = [*step.taken.steps, *step.otherwise.steps]
            return frozenset(step.results).union(*map(_made, inner))
        case Loop():
            return frozenset(step.carried).union(*map(_made, (*step.test.steps, *step.body.steps)))
        case Rows():
            return frozenset((*step.inner, *step.results)).union(*map(_made, step.side.steps))


def _names(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
