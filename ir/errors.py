"""Errors of the house: what is wrong, where in the user's model, what to do about it."""

from __future__ import annotations


class PenstockError(Exception):
    """Base of every error that a user may see. ``exit_code`` is what the command line returns.

    Codes: 1 bug, 2 usage or recipe, 3 model not supported, 4 environment or engine missing,
    5 resource exhausted (disk, memory, time), 6 verification failed, 7 goal not met, 8 untrusted or corrupted input,
    9 an engine's builder failed.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        lines = [what]
        if where:
            lines.append(f"  at {where}")
        if hint:
            lines.append(f"  hint: {hint}")
        super().__init__("\n".join(lines))


class IRError(PenstockError):
    """The IR was misused or is not well formed: a bug in a pass, or a faulty IR text."""


class ParseError(PenstockError):
    """A text is not IR; names the line."""

    exit_code = 8


class UsageError(PenstockError):
    """A request that cannot be meant: unknown name, wrong type, missing file."""

    exit_code = 2


class UnsupportedError(PenstockError):
    """The model holds constructs that cannot be carried; lists all of them."""

    exit_code = 3


class MissingError(PenstockError):
    """Something that must be installed is not; says which command brings it."""

    exit_code = 4


class ResourceError(PenstockError):
    """Disk, memory or permission ran out."""

    exit_code = 5


class LimitError(ResourceError):
    """One builder took longer, or held more, than it may; others may go on."""


class VerificationError(PenstockError):
    """Numbers moved further than was promised."""

    exit_code = 6


class GoalError(PenstockError):
    """Everything worked, but the goal was not met (not faster than the baseline)."""

    exit_code = 7


class UntrustedError(PenstockError):
    """An artifact or input file was changed, is incomplete, or would run foreign code."""

    exit_code = 8


class BuildError(PenstockError):
    """The builder of an engine crashed, or failed for a reason of its own; says what it said last."""

    exit_code = 9


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint that names the closest known spelling and lists the rest.

    >>> nearest("fold-constant", ["fold-constants", "quantize"])
    'did you mean "fold-constants"? known: fold-constants, quantize'
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = "known: " + ", ".join(known)
    return f'did you mean "{close[0]}"? {listing}' if close else listing
