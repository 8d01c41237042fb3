"""Where layers are put: a scope of the shared emission whose nodes are TensorRT layers.

The op functions of ``backends.onnx_emit`` say what an operator means in about ninety primitive kinds; here each kind
is a few native layers (``kinds``). Values have names there, tensors here.

A branch of a conditional reads what lies outside through the conditional's own inputs: without that both sides run
eagerly. A loop reads the outside directly, also from within a branch. Constants are read directly everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from backends.arguments import Refused
from backends.base import CPU, Device
from backends.onnx_emit.scope import Emission, Scope
from backends.tensorrt.library import Log, data_type, sentence, torch_type
from ir import Dim, TensorType
from ir.weights import raw_bytes

Kind = Callable[..., Any]
"""``(scope, inputs by name, attributes)`` to one tensor or several."""
NOTHING = "reads what could not be made:"
"""Begins the reason of a fault that follows from an earlier one."""
_OF_SHAPES = frozenset({"Shape", "Size"})
_FOLDED = 4096  # elements of a constant that is computed while emitting


@dataclass
class Network(Emission):
    """What all scopes of one network share.

    Attributes:
        device: that it is built for.
        constants: content of every constant tensor, by its name here.
        contents: the same by the name of the layer, which the simulation reads: the API does not give all back.
        parts_of: what each vector of sizes was joined from.
        foldable: names of what is computed from constants and shapes only; read directly, as constants are.
        products: name of each layer with a product, and the conditionals and loops around it.
        flows: for each conditional and loop by its name: what it was in the graph, and what it became.
        kept: memory that the network points to until it is built.
    """

    device: Device = CPU
    trt: Any = None
    definition: Any = None
    log: Log = field(default_factory=Log)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    packed: dict[str, tuple[Any, tuple[int, ...]]] = field(default_factory=dict)
    contents: dict[str, tuple[torch.Tensor, Any]] = field(default_factory=dict)
    parts_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    entries: set[str] = field(default_factory=set)
    foldable: set[str] = field(default_factory=set)
    kept: list[Any] = field(default_factory=list)
    products: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    flows: dict[str, tuple[str, str]] = field(default_factory=dict)


class NetworkScope(Scope):
    """The layers of one region, and short words to make more."""

    def __init__(self, network: Network, outer: NetworkScope | None = None, role: str = "", gate: Any = None) -> None:
        super().__init__(network, outer)
        self.network = network
        self.around = outer
        self.role = role
        self.gate = gate
        self.within: tuple[str, ...] = (*(outer.within if outer else ()), *((gate.name,) if role else ()))
        self.tensors: dict[str, Any] = {}
        self._routed: dict[str, Any] = {}

    @property
    def trt(self) -> Any:
        """The package."""
        return self.network.trt

    @property
    def in_flow(self) -> bool:
        """Whether this lies within a conditional or a loop."""
        return bool(self.within)

    # --- tensors by name -----------------------------------------------------------------------

    def read(self, name: str, in_loop: bool = False) -> Any:
        """The tensor of a name, as this region may read it."""
        if name in self.network.constants:
            return self.constant_tensor(name)
        if name in self.tensors:
            return self.tensors[name]
        if self.around is None:
            raise Refused(f"{NOTHING} {name}")
        if name in self.network.foldable:
            return self.around.read(name, in_loop)
        if self.role == "loop":
            return self.around.read(name, in_loop=True)
        tensor = self.around.read(name, in_loop)
        if in_loop:
            return tensor
        if name not in self._routed:
            self._routed[name] = self.check(self.gate.add_input(tensor).get_output(0))
        return self._routed[name]

    def share_routes(self, other: NetworkScope) -> None:
        """Both branches of one conditional read through the same inputs."""
        self._routed = other._routed

    def bind(self, tensor: Any, base: str = "t", foldable: bool = False) -> str:
        """Give a tensor a name in this region."""
        name = self.emission.fresh(base)
        self.tensors[name] = self.check(tensor)
        if foldable:
            self.network.foldable.add(name)
        return name

    def check(self, tensor: Any) -> Any:
        """A tensor whose shape the package could infer.

        Raises:
            Refused: with what the package said.
        """
        try:
            if tensor is not None:
                tensor.dtype  # noqa: B018  (also fixes the inferred type, which a recurrence needs)
                tensor.shape  # noqa: B018
        except RuntimeError:
            tensor = None
        errors, _ = self.network.log.take()
        if tensor is None or errors:
            raise Refused(f"TensorRT does not take it: {sentence(errors)}")
        return tensor

    # --- nodes ---------------------------------------------------------------------------------

    def ops(self, kind: str, count: int, *inputs: str | None, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Make the layers of one kind, or find the equal ones."""
        read = [name or "" for name in inputs]
        while read and not read[-1]:
            read.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        key = (kind, domain, tuple(read), count, repr(sorted(given.items())))
        known = self._found(lambda scope: scope._made.get(key))
        if known is not None:
            return known
        if kind not in self.network.kinds or domain:
            raise Refused(f"TensorRT has no form of {kind}")
        made = self.network.kinds[kind](self, read, given)
        tensors = made if isinstance(made, (tuple, list)) else (made,)
        foldable = kind in _OF_SHAPES or all(not n or self.is_fixed(n) for n in read)
        names = tuple(
            t if isinstance(t, str) else self.bind(t, f"{kind}.{i}" if i else kind, foldable)
            for i, t in enumerate(tensors)
        )
        self._made[key] = names
        if kind == "Concat":
            self.network.parts_of[names[0]] = tuple(read)
        return names

    def is_constant(self, name: str) -> bool:
        """Whether a name is a weight or a literal."""
        return name in self.network.constants

    def is_fixed(self, name: str) -> bool:
        """Whether a name is a constant, or computed from constants and shapes only."""
        return name in self.network.constants or name in self.network.foldable

    def layer(self, made: Any) -> Any:
        """The checked output of a layer just made."""
        return self.check(None if made is None else made.get_output(0))

    # --- constants -----------------------------------------------------------------------------

    def const(self, value: Any, dtype: torch.dtype) -> str:
        """A literal: a number, a list, or a small tensor."""
        try:
            tensor = torch.as_tensor(value).to(dtype).contiguous()
        except (OverflowError, RuntimeError) as error:
            raise Refused(f"{value!r} is no {dtype}") from error
        if dtype == torch.float64:  # a number of Python's
            tensor = tensor.to(torch.float32)
        key = (tensor.dtype, tuple(tensor.shape), bytes(raw_bytes(tensor)))
        if key not in self.emission.known:
            name = self.emission.fresh("c")
            self.network.constants[name] = tensor
            self.emission.known[key] = name
        return self.emission.known[key]

    def weight(self, name: str, type_: TensorType) -> str:
        """A param of the graph: its own memory, no copy."""
        made = self.emission.fresh(name)
        tensor = self.emission.graph.weights[name]
        if data_type(self.trt, tensor.dtype) is None or tensor.dtype == torch.float64:
            raise Refused(f"TensorRT has no elements of type {str(tensor.dtype).removeprefix('torch.')}")
        self.network.constants[made] = tensor
        return made

    def packed_weight(self, base: str, content: torch.Tensor, kind: Any, shape: Sequence[int]) -> str:
        """Bytes of numbers narrower than a byte, as a constant of ``shape`` elements of that TensorRT type."""
        name = self.emission.fresh(base)
        self.network.constants[name] = content.contiguous()
        self.network.packed[name] = (kind, tuple(shape))
        return name

    def constant_tensor(self, name: str) -> Any:
        """The constant layer's tensor, made once, at the top."""
        network = self.network
        if name not in network.made:
            tensor = network.constants[name].detach().cpu().contiguous()
            kind, shape = network.packed.get(name, (data_type(self.trt, tensor.dtype), tuple(tensor.shape)))
            network.kept.append(tensor)
            count = 1
            for size in shape:
                count *= size
            weights = self.trt.Weights(kind, tensor.data_ptr() if count else 0, count)
            layer = network.definition.add_constant(shape, weights)
            network.made[name] = self.layer(layer)
            layer.name = name
            network.contents[name] = (tensor, kind)
        return network.made[name]

    def content(self, name: str) -> torch.Tensor | None:
        """What a constant holds; ``None`` for what is known only when it runs, and for packed numbers."""
        return None if name in self.network.packed else self.network.constants.get(name)

    def literal(self, name: str) -> list[int]:
        """The numbers of a constant vector of integers."""
        return [int(v) for v in self.network.constants[name].reshape(-1).tolist()]

    def keep(self, tensor: torch.Tensor) -> str | None:
        """A constant computed while emitting, where that is cheap."""
        return self.const(tensor, tensor.dtype) if tensor.numel() <= _FOLDED else None

    def small(self, *names: str) -> list[torch.Tensor] | None:
        """The contents of constants that are cheap to compute with; ``None`` when one is not."""
        found = [self.content(n) for n in names]
        if any(t is None or t.numel() > _FOLDED for t in found):
            return None
        return [t for t in found if t is not None]

    def dim(self, dim: Dim) -> str:
        """A symbolic size; shapes of the model's inputs are read at the top."""
        if isinstance(dim, int) or not dim.is_Symbol or dim.name not in self.emission.sources:
            return super().dim(dim)
        name, axis = self.emission.sources[dim.name]
        scope = self.root if name in self.network.entries else self
        return scope.op("Shape", name, start=axis, end=axis + 1)

    def joined(self, name: str) -> tuple[str, ...]:
        """What a vector was joined from, or itself."""
        return self.network.parts_of.get(name, (name,))

    def permuted(self, name: str) -> tuple[str, tuple[int, ...] | None]:
        """What a name is a permutation of, and the order of dims; the name itself and ``None`` otherwise."""
        return self._found(lambda scope: scope._permutations.get(name)) or (name, None)

    # --- element types -------------------------------------------------------------------------

    def type_of(self, tensor: Any) -> torch.dtype:
        """Element type of a tensor of the network."""
        return torch_type(self.trt, tensor.dtype)

    def cast(self, name: str, have: torch.dtype, want: torch.dtype) -> str:
        """Convert elements, when they differ for TensorRT."""
        if data_type(self.trt, have) == data_type(self.trt, want):
            return name
        return super().cast(name, have, want)
