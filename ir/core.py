"""The nouns of the IR. Types and operators are plain values; values, nodes and graphs have identity.

A ``Graph`` owns one ``Block`` of ``Node``s; a node of ``cond``, ``while`` or ``rows`` owns further
blocks, its regions, which see nothing but their own arguments. Only the verbs of ``Graph`` change anything, and
each change moves ``Graph.version``, so that nobody has to be believed about "modified".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, Union

import torch

from ir.dims import DimRange
from ir.errors import IRError
from ir.ops import RETURN, Op
from ir.types import TensorType, Type
from ir.weights import Weights

Literal_: TypeAlias = (
    bool | int | float | complex | str | torch.dtype | torch.device | torch.layout | torch.memory_format | None
)
Arg: TypeAlias = Union["Value", Literal_, "tuple[Arg, ...]"]
"""An argument: a value, a literal, or a (nested) tuple of them. Torch lists are tuples here."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from in the user's model.

    Attributes:
        path: module path, such as ``encoder.layer.3.output``.
        line: ``file.py:123`` of the innermost frame.
    """

    path: str = ""
    line: str = ""

    def __str__(self) -> str:
        return " @ ".join(part for part in (self.path, self.line) if part)


@dataclass(eq=False, slots=True)
class Value:
    """Defined once: by ``producer``, or as an argument of a block when that is ``None``.

    ``uses`` is an ordered set of the nodes that read it, so that every walk is deterministic.
    """

    type: Type
    name: str = ""
    producer: Node | None = field(default=None, repr=False)
    uses: dict[Node, None] = field(default_factory=dict, repr=False)

    @property
    def tensor(self) -> TensorType:
        """The type, where it must be a tensor."""
        if not isinstance(self.type, TensorType):
            raise IRError(f"%{self.name} is {self.type}, not a tensor", where=str(self.origin))
        return self.type

    @property
    def origin(self) -> Origin:
        """Where the value comes from; empty for an argument."""
        return self.producer.origin if self.producer else Origin()


@dataclass(eq=False, slots=True)
class Node:
    """One operation. Change it through the verbs of ``Graph`` only.

    Attributes:
        args, kwargs: arguments in torch's order; values may stand inside nested tuples.
        regions: blocks of ``cond`` (taken when true, when false), ``while`` (test, body) and ``rows`` (body).
        hints: remarks of the compiler to the engine (fusion group, say); no influence on the meaning.
    """

    op: Op
    args: tuple[Arg, ...]
    kwargs: Mapping[str, Arg]
    origin: Origin = Origin()
    regions: tuple[Block, ...] = ()
    hints: Mapping[str, int | str] = field(default_factory=dict)
    results: tuple[Value, ...] = ()
    block: Block | None = field(default=None, repr=False)
    previous: Node | None = field(default=None, repr=False)
    next: Node | None = field(default=None, repr=False)

    @property
    def operands(self) -> tuple[Value, ...]:
        """Every value read, in order, once per place."""
        found: list[Value] = []
        _collect(self.args, found)
        if self.kwargs:
            _collect(tuple(self.kwargs.values()), found)
        return tuple(found)

    @property
    def result(self) -> Value:
        """The only result."""
        if len(self.results) != 1:
            raise IRError(f"{self.op.name} has {len(self.results)} results, not one", where=str(self.origin))
        return self.results[0]

    @property
    def pure(self) -> bool:
        """May be dropped when unused: the operator and all within its regions are pure."""
        return self.op.pure and all(node.pure for region in self.regions for node in region if node.op is not RETURN)

    def arg(self, position: int, name: str, default: Arg = None) -> Arg:
        """An argument given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


def _collect(args: tuple[Arg, ...], found: list[Value]) -> None:
    for arg in args:
        if isinstance(arg, Value):
            found.append(arg)
        elif isinstance(arg, tuple):
            _collect(arg, found)


def map_values(arg: Arg, change: Callable[[Value], Arg]) -> Arg:
    """The same argument with each value changed."""
    if isinstance(arg, Value):
        return change(arg)
    if isinstance(arg, tuple):
        return tuple(map_values(a, change) for a in arg)
    return arg


class Block:
    """Nodes in execution order, linked both ways: O(1) insert and erase. Ends with ``return``."""

    __slots__ = ("args", "first", "last", "size")

    def __init__(self, args: Sequence[Value] = ()) -> None:
        self.args = list(args)
        self.first: Node | None = None
        self.last: Node | None = None
        self.size = 0

    def __iter__(self) -> Iterator[Node]:
        """A snapshot: rewriting while walking is safe; erased nodes have ``block is None``."""
        nodes = []
        node = self.first
        while node is not None:
            nodes.append(node)
            node = node.next
        return iter(nodes)

    def __reversed__(self) -> Iterator[Node]:
        return reversed(list(self))

    def __len__(self) -> int:
        return self.size

    @property
    def returned(self) -> Node:
        """The ``return`` node; outputs are its operands, ordinary uses."""
        if self.last is None or self.last.op is not RETURN:
            raise IRError("the block does not end with return")
        return self.last

    def link(self, node: Node, before: Node | None) -> None:
        """Only for ``Graph`` and copies: put a node before another one, or last."""
        previous = self.last if before is None else before.previous
        node.block, node.previous, node.next = self, previous, before
        if previous is None:
            self.first = node
        else:
            previous.next = node
        if before is None:
            self.last = node
        else:
            before.previous = node
        self.size += 1

    def unlink(self, node: Node) -> None:
        """Only for ``Graph``: take a node out."""
        if node.previous is None:
            self.first = node.next
        else:
            node.previous.next = node.next
        if node.next is None:
            self.last = node.previous
        else:
            node.next.previous = node.previous
        node.block = node.previous = node.next = None
        self.size -= 1


@dataclass(frozen=True, slots=True)
class Input:
    """A graph argument: ``kind`` is input, state (carried from call to call) or param (a named weight).

    A state that no output renews is a *setting*: what it is when the caller says nothing stands in ``Graph.initial``.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a result is: ``output``, the new content of the ``state`` of that name, or a ``trace``.

    A trace tells about the run (how deep a row went, say); it is no part of the answer.
    """

    kind: str
    name: str

    @property
    def key(self) -> str:
        """Its name among all results of a run: ``NAME``, ``state:NAME``, ``trace:NAME``."""
        return self.name if self.kind == "output" else f"{self.kind}:{self.name}"


class Graph:
    """A model: its dims, its arguments, its nodes, its weights.

    Attributes:
        name: for people.
        dims: each symbol of the shapes with its bounds.
        inputs: what each argument of ``body`` is, in the order of ``body.args``.
        outputs: one entry per operand of the final ``return``.
        weights: tensors of the params, kept once, outside the graph.
        initial: first content of those states that the model came with.
        version: counts every change.
    """

    def __init__(self, name: str = "model", dims: Mapping[str, DimRange] | None = None) -> None:
        from ir.infer import Typer

        self.name = name
        self.dims: dict[str, DimRange] = dict(dims or {})
        self.body = Block()
        self.inputs: dict[Value, Input] = {}
        self.taken: set[Input] = set()
        self.outputs: tuple[Output, ...] = ()
        self.weights = Weights()
        self.initial: dict[str, torch.Tensor] = {}
        self.version = 0
        self.typer = Typer(self.dims)

    # --- reading -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Node]:
        """Snapshot of the top-level nodes, in execution order."""
        return iter(self.body)

    def __len__(self) -> int:
        return sum(1 for _ in self.walk())

    def walk(self) -> Iterator[Node]:
        """Every node, also within regions, outer before inner."""
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[Block]:
        """The body and every region."""
        stack = [self.body]
        while stack:
            block = stack.pop()
            yield block
            for node in block:
                stack.extend(node.regions)

    def arguments(self, kind: str) -> Iterator[tuple[str, Value]]:
        """Name and value of each argument of that kind."""
        for value, spec in tuple(self.inputs.items()):
            if spec.kind == kind:
                yield spec.name, value

    def param_of(self, value: Value) -> str | None:
        """Name of the weight that a value is, or ``None``."""
        spec = self.inputs.get(value)
        return spec.name if spec is not None and spec.kind == "param" else None

    def settings(self) -> tuple[str, ...]:
        """Names of the states that no output renews."""
        renewed = {o.name for o in self.outputs if o.kind == "state"}
        return tuple(name for name, _ in self.arguments("state") if name not in renewed)

    def params(self) -> dict[Value, str]:
        """Every param value with the name of its weight."""
        return {value: name for name, value in self.arguments("param")}

    # --- changing ------------------------------------------------------------------------------

    def add_input(self, kind: str, name: str, type_: Type, value_name: str = "") -> Value:
        """Append an argument. Params need their tensor in ``weights``, see ``add_param``."""
        spec = Input(kind, name)
        if spec in self.taken:
            raise IRError(f"there is a {kind} named {name!r} already")
        value = Value(type_, value_name or name)
        self.body.args.append(value)
        self.inputs[value] = spec
        self.taken.add(spec)
        self.version += 1
        return value

    def add_param(self, name: str, tensor: torch.Tensor) -> Value:
        """A new weight; a name that is taken gets a number."""
        unique, count = name, 1
        while unique in self.weights:
            unique, count = f"{name}.{count}", count + 1
        self.weights.add(unique, tensor)
        type_ = TensorType(tensor.dtype, tuple(tensor.shape))
        return self.add_input("param", unique, type_, unique.replace(".", "_"))

    def drop_argument(self, value: Value) -> None:
        """Remove an argument that nothing reads, and the weight with it."""
        if value.uses:
            raise IRError(f"cannot drop %{value.name}: it is used")
        spec = self.inputs.pop(value)
        self.taken.discard(spec)
        self.body.args.remove(value)
        if spec.kind == "param":
            self.weights.remove(spec.name)
        self.version += 1

    def insert(
        self,
        op: Op,
        *args: Arg,
        before: Node | None = None,
        block: Block | None = None,
        origin: Origin | None = None,
        regions: tuple[Block, ...] = (),
        types: Sequence[Type] | None = None,
        name: str = "",
        hints: Mapping[str, int | str] | None = None,
        kwargs: Mapping[str, Arg] | None = None,
    ) -> Node:
        """Make a node before another one, or at the end of ``block`` (the body).

        The result types are derived by torch's meta kernels unless they are given.
        """
        if before is not None:
            home = before.block
        else:
            home = self.body if block is None else block  # an empty block is falsy
        if home is None:
            raise IRError("cannot insert before a node that was erased")
        if origin is None:
            origin = before.origin if before is not None else Origin()
        node = Node(op, args, dict(kwargs or {}), origin, regions, dict(hints or {}))
        if types is None:
            types = self.typer.infer(node)
        node.results = tuple(
            Value(t, name if len(types) == 1 else f"{name}_{i}" if name else "", node) for i, t in enumerate(types)
        )
        for value in node.operands:
            value.uses[node] = None
        home.link(node, before)
        self.version += 1
        return node

    def returns(self, *values: Arg, block: Block | None = None, outputs: Sequence[Output] | None = None) -> Node:
        """End a block. For the body, ``outputs`` says what each value is."""
        if block is None or block is self.body:
            names = outputs or [Output("output", f"output_{i}") for i in range(len(values))]
            if len(names) != len(values):
                raise IRError("one Output per returned value")
            self.outputs = tuple(names)
        return self.insert(RETURN, *values, block=block, types=())

    def set_arguments(self, node: Node, args: tuple[Arg, ...], kwargs: Mapping[str, Arg] | None = None) -> None:
        """Give a node other arguments of the same types."""
        for value in node.operands:
            value.uses.pop(node, None)
        node.args = args
        if kwargs is not None:
            node.kwargs = dict(kwargs)
        for value in node.operands:
            value.uses[node] = None
        self.version += 1

    def replace(self, old: Value, new: Arg) -> None:
        """Let every reader of ``old`` read ``new``: a value of the same type, or a literal for a scalar."""
        if old is new:
            return
        if isinstance(new, Value) and old.type != new.type:
            raise IRError(
                f"replacement changes the type of %{old.name}: {old.type} -> {new.type}", where=str(old.origin)
            )
        if not isinstance(new, Value) and isinstance(old.type, TensorType):
            raise IRError(f"a literal cannot stand for the tensor %{old.name}", where=str(old.origin))
        for user in tuple(old.uses):
            args = tuple(map_values(a, lambda v: new if v is old else v) for a in user.args)
            kwargs = {k: map_values(a, lambda v: new if v is old else v) for k, a in user.kwargs.items()}
            self.set_arguments(user, args, kwargs)

    def erase(self, node: Node) -> None:
        """Remove a node whose results nothing reads."""
        if any(value.uses for value in node.results):
            raise IRError(f"cannot erase {node.op.name}: it is used", where=str(node.origin), hint="replace() first")
        if node.block is None:
            raise IRError(f"{node.op.name} was erased before", where=str(node.origin))
        for value in node.operands:
            value.uses.pop(node, None)
        node.block.unlink(node)
        self.version += 1

    def set_hint(self, node: Node, key: str, value: int | str) -> None:
        """Leave a remark for the engine; counts as a change only when it is new."""
        if node.hints.get(key) != value:
            node.hints = {**node.hints, key: value}
            self.version += 1
