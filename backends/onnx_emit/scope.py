"""Where nodes are put: one scope per ONNX graph, nested as the graphs are.

Equal nodes are made once per scope (and read from the scopes around it), so that op functions may ask
for a mask, a transposed weight or a quantized activation as often as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx
import sympy
import torch
from onnx import NodeProto, TensorProto, helper

from backends.arguments import Refused, dtype_of
from backends.onnx_emit.dtypes import onnx_type
from ir import Arg, Dim, Graph, ScalarType, TensorType, Value
from ir.weights import raw_bytes

MICROSOFT = "com.microsoft"
LONGEST = 2**63 - 1
_WHOLE = 2**31 - 1
_Found = TypeVar("_Found")


@dataclass
class Emission:
    """What all scopes of one model share.

    Attributes:
        flavor: the engine whose operators may be used; ``portable`` is plain ONNX.
        initializers: constants and weights by name, all at the top level.
        names: ONNX name of each value.
        sources: where the size of a symbol can be read: ONNX input and axis.
        parts: what operators without a form were taken apart into, or why they were not.
    """

    graph: Graph
    flavor: str
    spans: Mapping[str, tuple[int, int]]
    weights_file: str
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    names: dict[Value, str] = field(default_factory=dict)
    sources: dict[str, tuple[str, int]] = field(default_factory=dict)
    parts: dict[str, Graph | str] = field(default_factory=dict)
    known: dict[object, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    def fresh(self, base: str) -> str:
        """A name that nothing has yet."""
        name = base
        while name in self.taken:
            self.numbers[base] = self.numbers.get(base, 0) + 1
            name = f"{base}_{self.numbers[base]}"
        self.taken.add(name)
        return name


class Scope:
    """The nodes of one ONNX graph, and short words to make more."""

    def __init__(self, emission: Emission, outer: Scope | None = None) -> None:
        self.emission = emission
        self.outer = outer
        self.nodes: list[NodeProto] = []
        self._made: dict[object, tuple[str, ...]] = {}
        self._permutations: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._reshapes: dict[str, tuple[str, tuple[Dim, ...]]] = {}

    @property
    def root(self) -> Scope:
        """The scope of the whole model."""
        return self.outer.root if self.outer is not None else self

    @property
    def flavor(self) -> str:
        """The engine whose operators may be used."""
        return self.emission.flavor

    # --- nodes ---------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str | None, domain: str = "", **attributes: Any) -> str:
        """Make a node with one result."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str | None, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Make a node with several results, or find the equal one."""
        read = [name or "" for name in inputs]
        while read and not read[-1]:
            read.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        key = (kind, domain, tuple(read), count, repr(sorted(given.items())))
        known = self._found(lambda scope: scope._made.get(key))
        if known is not None:
            return known
        results = tuple(self.emission.fresh(f"{kind}.{i}" if i else kind) for i in range(count))
        self.nodes.append(helper.make_node(kind, read, results, name=results[0], domain=domain, **given))
        self._made[key] = results
        return results

    def is_constant(self, name: str) -> bool:
        """Whether a name is a weight or a literal."""
        return name in self.emission.initializers

    # --- constants -----------------------------------------------------------------------------

    def const(self, value: Any, dtype: torch.dtype) -> str:
        """A literal: a number, a list, or a small tensor."""
        try:
            exact = torch.as_tensor(value, dtype=torch.float64) if isinstance(value, float) else torch.as_tensor(value)
            tensor = exact.to(dtype).contiguous()
        except (OverflowError, RuntimeError) as error:
            raise Refused(f"{value!r} is no {dtype}") from error
        content = bytes(raw_bytes(tensor))
        key = (dtype, tuple(tensor.shape), content)
        known = self.emission.known
        if key not in known:
            name = self.emission.fresh("c")
            self.emission.initializers[name] = TensorProto(
                name=name, dims=tensor.shape, data_type=onnx_type(dtype), raw_data=content
            )
            known[key] = name
        return known[key]

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.const(torch.tensor(values, dtype=torch.int64), torch.int64)

    def weight(self, name: str, type_: TensorType) -> str:
        """A param: refers into the weights file, holds nothing."""
        if self.flavor == "openvino" and type_.dtype == torch.int64 and _exceeds(self.emission.graph.weights.get(name)):
            raise Refused("holds whole numbers beyond 32 bits, in which OpenVINO computes them")
        offset, length = self.emission.spans[name]
        made = self.emission.fresh(name)
        tensor = TensorProto(name=made, dims=type_.shape, data_type=onnx_type(type_.dtype))
        if length:
            tensor.data_location = TensorProto.EXTERNAL
            told = {"location": self.emission.weights_file, "offset": str(offset), "length": str(length)}
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in told.items())
        else:
            tensor.raw_data = b""
        self.emission.initializers[made] = tensor
        return made

    # --- values --------------------------------------------------------------------------------

    def __getitem__(self, value: Value) -> str:
        """ONNX name of a value. Numbers made while the model runs are vectors of one element."""
        return self.emission.names[value]

    def __setitem__(self, value: Value, name: str) -> None:
        self.emission.names[value] = name

    def tensor(self, arg: Arg, dtype: torch.dtype) -> str:
        """An operand as a tensor of that type; numbers become 0-d."""
        if isinstance(arg, Value):
            name = self.cast(self[arg], dtype_of(arg), dtype)
            return self.op("Squeeze", name, self.ints(0)) if isinstance(arg.type, ScalarType) else name
        if isinstance(arg, (bool, int, float)):
            if self.flavor == "openvino" and isinstance(arg, int) and not dtype.is_floating_point and abs(arg) > _WHOLE:
                raise Refused(f"{arg}: OpenVINO computes whole numbers in 32 bits")
            return self.const(arg, dtype)
        raise Refused(f"cannot compute with {arg!r}")

    def cast(self, name: str, have: torch.dtype, want: torch.dtype) -> str:
        """Convert elements, when they differ."""
        return name if have == want else self.op("Cast", name, to=onnx_type(want))

    # --- sizes ---------------------------------------------------------------------------------

    def vector(self, sizes: Sequence[Arg]) -> str:
        """Integers, some made while the model runs, as one int64 vector."""
        parts: list[str] = []
        run: list[int] = []
        for size in sizes:
            if isinstance(size, int):
                run.append(int(size))
                continue
            if run:
                parts.append(self.ints(*run))
                run = []
            if not isinstance(size, Value):
                raise Refused(f"{size!r} is no size")
            parts.append(self._as_vector(size))
        if run or not parts:
            parts.append(self.ints(*run))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _as_vector(self, size: Value) -> str:
        name = self.cast(self[size], dtype_of(size), torch.int64)
        if isinstance(size.type, TensorType):
            return self.op("Reshape", name, self.ints(1))
        return name

    def size_of(self, value: Value, axis: int) -> str:
        """One size of a tensor, as a vector of one; read from a model input when it is one of its dims."""
        type_ = value.tensor
        axis %= type_.rank
        dim = type_.shape[axis]
        if isinstance(dim, int):
            return self.ints(dim)
        if dim.is_Symbol and dim.name in self.emission.sources:
            return self.dim(dim)
        return self.op("Shape", self[value], start=axis, end=axis + 1)

    def sizes_of(self, value: Value, order: Sequence[int] | None = None) -> str:
        """The shape of a tensor as a vector."""
        axes = range(value.tensor.rank) if order is None else order
        parts = [self.size_of(value, axis) for axis in axes]
        return self.join(parts)

    def join(self, parts: Sequence[str]) -> str:
        """Concatenate vectors of sizes; literals stay literals."""
        if all(map(self.is_constant, parts)):
            return self.ints(*(i for p in parts for i in self.literal(p)))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def literal(self, name: str) -> list[int]:
        """The numbers of a constant vector of int64."""
        content = self.emission.initializers[name].raw_data
        return [int.from_bytes(content[i : i + 8], "little", signed=True) for i in range(0, len(content), 8)]

    def dim(self, dim: Dim) -> str:
        """A symbolic size computed from the shapes of the model's inputs, as a vector of one.

        Raises:
            Refused: it depends on the data.
        """
        if isinstance(dim, int) or dim.is_Integer:
            return self.ints(int(dim))
        if dim.is_Symbol:
            if dim.name not in self.emission.sources:
                raise Refused(f"size {dim} is no function of the input shapes")
            name, axis = self.emission.sources[dim.name]
            return self.op("Shape", name, start=axis, end=axis + 1)
        kinds = {"Add": "Add", "Mul": "Mul", "Max": "Max", "Min": "Min", "FloorDiv": "Div", "CleanDiv": "Div"}
        kinds |= {"Mod": "Mod", "PythonMod": "Mod"}
        kind = kinds.get(type(dim).__name__)
        if kind is None or any(isinstance(a, sympy.Rational) and not a.is_Integer for a in dim.args):
            raise Refused(f"size {dim} cannot be computed from the input shapes")
        first, *others = (self.dim(a) for a in dim.args)
        for other in others:
            first = self.op(kind, first, other)
        return first

    def reshape(self, name: str, have: Sequence[Dim], want: Sequence[Dim], given: Sequence[Arg] = ()) -> str:
        """Give a tensor another shape, with a constant shape wherever the types allow one."""
        if tuple(have) == tuple(want):
            return name
        before = self._found(lambda scope: scope._reshapes.get(name))
        if before is not None and before[1] == tuple(want):  # there and back
            return before[0]
        made = self._reshape(name, have, want, given)
        self._reshapes[made] = (name, tuple(have))
        return made

    def _reshape(self, name: str, have: Sequence[Dim], want: Sequence[Dim], given: Sequence[Arg]) -> str:
        if 0 in want:
            sizes = [d if isinstance(d, int) else given[i] for i, d in enumerate(want)]
            return self.op("Reshape", name, self.vector(sizes), allowzero=1)
        entries: list[int | None] = []
        for index, dim in enumerate(want):
            if isinstance(dim, int):
                entries.append(dim)
            else:  # 0: as in the input
                entries.append(0 if index < len(have) and have[index] == dim else None)
        open_ = [i for i, entry in enumerate(entries) if entry is None]
        if len(open_) <= 1:
            return self.op("Reshape", name, self.ints(*(-1 if e is None else e for e in entries)))
        parts, inferred = [], False
        for index, entry in enumerate(entries):
            size = given[index] if index < len(given) else None
            if entry is not None:
                parts.append(self.ints(entry))
            elif isinstance(size, Value):
                parts.append(self._as_vector(size))
            elif not inferred and (size == -1 or index == open_[-1]):
                parts.append(self.ints(-1))
                inferred = True
            else:
                parts.append(self.dim(want[index]))
        return self.op("Reshape", name, self.join(parts))

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """Permute; a weight is permuted once for the whole model, where engines fold it."""
        before = self._found(lambda scope: scope._permutations.get(name))
        if before is not None:  # two permutations are one, or none
            name, first = before
            order = [first[axis] for axis in order]
        if list(order) == list(range(len(order))):
            return name
        scope = self.root if self.is_constant(name) else self
        made = scope.op("Transpose", name, perm=list(order))
        scope._permutations[made] = (name, tuple(order))
        return made

    def _found(self, look: Callable[[Scope], _Found | None]) -> _Found | None:
        """What this scope or one around it knows."""
        scope: Scope | None = self
        while scope is not None:
            if (found := look(scope)) is not None:
                return found
            scope = scope.outer
        return None


def _exceeds(weight: torch.Tensor | None) -> bool:
    if weight is None or not weight.numel():
        return False
    low, high = (int(v) for v in torch.aminmax(weight))
    return low < -_WHOLE - 1 or high > _WHOLE
