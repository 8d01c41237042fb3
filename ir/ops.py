"""Operators: a name, and torch's own meaning for it. Nothing here re-states what torch knows.

Three families share the class ``Op``: torch operators by their full name (``aten.linear.default``),
arithmetic on sizes (``sym.add``), and those that hold regions (``cond``, ``while``, ``rows``) plus ``return``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import torch

from ir.errors import ParseError

SYM_OPS: Mapping[str, Callable[..., Any]] = {
    "sym.add": operator.add,
    "sym.sub": operator.sub,
    "sym.mul": operator.mul,
    "sym.floordiv": operator.floordiv,
    "sym.truediv": operator.truediv,
    "sym.mod": operator.mod,
    "sym.pow": operator.pow,
    "sym.neg": operator.neg,
    "sym.eq": operator.eq,
    "sym.ne": operator.ne,
    "sym.lt": operator.lt,
    "sym.le": operator.le,
    "sym.gt": operator.gt,
    "sym.ge": operator.ge,
    "sym.and": operator.and_,
    "sym.or": operator.or_,
    "sym.not": torch.sym_not,
    "sym.max": torch.sym_max,
    "sym.min": torch.sym_min,
    "sym.ite": torch.sym_ite,
    "sym.int": torch.sym_int,
    "sym.float": torch.sym_float,
    "sym.sum": torch.sym_sum,
    "sym.sqrt": torch._sym_sqrt,
    "sym.ceil": math.ceil,
    "sym.floor": math.floor,
    "sym.trunc": math.trunc,
    "sym.round": round,
}
_SYM_NAMES = {id(function): name for name, function in SYM_OPS.items()}

# Operators that touch the world outside: never built from a text.
_FORBIDDEN = frozenset({"aten.from_file", "aten._print", "debugprims.load_tensor"})


@dataclass(frozen=True, slots=True)
class Op:
    """What an operation is; equal when the names are equal.

    Attributes:
        name: full name, ``namespace.operator.overload``, ``sym.*``, ``cond``, ``while``, ``rows``
            or ``return``.
        target: the callable that gives the operation its meaning; ``None`` for regions and return.
        effects: true when it may not be dropped, merged or moved (asserts, mutation).
        random: true when two runs may differ.
    """

    name: str
    target: Callable[..., Any] | None = field(default=None, compare=False, repr=False)
    effects: bool = field(default=False, compare=False)
    random: bool = field(default=False, compare=False)

    @property
    def pure(self) -> bool:
        """May be dropped when unused, and merged with an equal one."""
        return not (self.effects or self.random)


COND = Op("cond")
WHILE = Op("while")
ROWS = Op("rows")
RETURN = Op("return", effects=True)
_SPECIAL = {op.name: op for op in (COND, WHILE, ROWS, RETURN)}
REGIONS: Mapping[str, int] = {"cond": 2, "while": 2, "rows": 1}
"""How many regions an operator holds; the others hold none."""


@cache
def op(name: str) -> Op:
    """The operator of that name.

    Raises:
        ParseError: no such operator is known to torch in this process.
    """
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name in SYM_OPS:
        return Op(name, SYM_OPS[name])
    parts = name.split(".")
    if len(parts) != 3 or not all(p.isidentifier() for p in parts) or any(p.startswith("__p") for p in parts):
        raise ParseError(f"not an operator name: {name!r}", hint="write namespace.operator.overload")
    if ".".join(parts[:2]) in _FORBIDDEN:
        raise ParseError(f"operator {name!r} touches the world outside and is not accepted")
    if parts[0] == "penstock":
        from ir.own_ops import define

        define()
    elif parts[0] == "quantized_decomposed":  # torch registers these when this module is first read
        import_module("torch.ao.quantization.fx._decomposed")
    try:
        packet = getattr(getattr(torch.ops, parts[0]), parts[1])
        target = getattr(packet, parts[2])
    except (AttributeError, RuntimeError) as error:
        raise ParseError(
            f"torch knows no operator {name!r}",
            hint="import the package that defines it first" if parts[0] != "aten" else "",
        ) from error
    if not _is_operator(target):
        raise ParseError(f"{name!r} is no operator of torch's dispatcher")
    return op_of(target)


def _is_operator(target: object) -> bool:
    """Not an attribute that happens to be found there, nor a builtin of TorchScript (``aten.save`` writes files)."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name + ("." if target._schema.overload_name else "") + target._schema.overload_name
    return bool(torch._C._dispatch_has_kernel(name))


@cache
def op_of(target: Callable[..., Any]) -> Op:
    """The Op of a torch OpOverload or of a function on sizes.

    Raises:
        KeyError: the target is neither.
    """
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema
        namespace, _, packet = schema.name.partition("::")
        # "no return" marks an assertion; tags mark randomness.
        effects = schema.is_mutable or not schema.returns
        random = torch.Tag.nondeterministic_seeded in target.tags
        return Op(f"{namespace}.{packet}.{target._overloadname}", target, effects, random)
    return op(_SYM_NAMES[id(target)])
