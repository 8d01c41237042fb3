"""A graph as a list of kernels and a schedule of its memory: made once, evaluated for many sizes.

Nodes that carry the same hint ``fuse=<int>`` are one kernel, whose bytes are what crosses its border;
every other node that is not a view is a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ir import RETURN, ROWS, Block, Dim, Graph, Node, Value
from ir.price import Price, bytes_of, price, rows_moved


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch, or the launches of one node that no engine fuses.

    Attributes:
        prices: of the nodes that do something, in order.
        reads: bytes read per value from outside; where several nodes read it the largest counts.
        writes: bytes written per value that is read outside.
        launches: kernels that run.
    """

    prices: tuple[Price, ...]
    reads: tuple[tuple[Dim, ...], ...]
    writes: tuple[Dim, ...]
    launches: int

    @property
    def product(self) -> Price | None:
        """The matrix product that decides the time; of several, the first."""
        return next((p for p in self.prices if p.kind in ("matmul", "conv", "attention")), None)


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel in the order of the block, or a node with regions.

    Attributes:
        nodes: the nodes that it runs.
        kernel: what runs; equal kernels are the same object. With regions ``None``, or what moves rows for ``rows``.
        inside: the blocks of a node with regions.
    """

    nodes: tuple[Node, ...]
    kernel: Kernel | None
    inside: tuple[BlockPlan, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Steps of a block, and per node what it allocates and what nobody reads after it.

    Attributes:
        steps: kernels and regions in order.
        memory: per node (allocated, freed, plans of its regions), bytes per value.
    """

    steps: tuple[Step, ...]
    memory: tuple[tuple[tuple[Dim, ...], tuple[Dim, ...], tuple[BlockPlan, ...]], ...]

    def every_step(self) -> Iterator[Step]:
        """Steps here and within regions."""
        for step in self.steps:
            yield step
            for block in step.inside:
                yield from block.every_step()


@dataclass(frozen=True)
class Plan:
    """What ``estimate`` needs of a graph; does not follow later changes of it.

    Attributes:
        dims: bounds of the symbols.
        body: the top-level block.
        weight_bytes: all params, each once.
        input_bytes: arguments that the caller holds: inputs and states.
    """

    graph: Graph
    body: BlockPlan
    weight_bytes: Dim
    input_bytes: tuple[Dim, ...]


def make_plan(graph: Graph) -> Plan:
    """The plan of a graph."""
    shared: dict[Kernel, Kernel] = {}
    held = [bytes_of(v.type) for v, s in graph.inputs.items() if s.kind != "param"]
    weights: Dim = 0
    for _, value in graph.arguments("param"):
        weights = weights + bytes_of(value.type)
    return Plan(graph, _plan_block(graph.body, shared), weights, tuple(held))


def _plan_block(block: Block, shared: dict[Kernel, Kernel]) -> BlockPlan:
    nodes = [node for node in block if node.op is not RETURN]
    prices = {node: price(node) for node in nodes if not node.regions}
    base = _bases(nodes, prices)
    groups = _groups(nodes, prices)
    inside = {node: tuple(_plan_block(r, shared) for r in node.regions) for node in nodes if node.regions}
    written: dict[Value, bool] = {}
    steps = []
    for group in groups:
        if group[0].regions:
            moves = moving(group[0]) if group[0].op is ROWS else None
            steps.append(Step(tuple(group), shared.setdefault(moves, moves) if moves else None, inside[group[0]]))
            continue
        kernel = _kernel(group, prices, base, written)
        if kernel is not None:
            steps.append(Step(tuple(group), shared.setdefault(kernel, kernel)))
    return BlockPlan(tuple(steps), _memory(block, nodes, groups, base, written, inside))


def moving(node: Node) -> Kernel:
    """The gathers and scatters around the region of ``rows``."""
    cost = rows_moved(node)
    return Kernel((cost,), tuple((size,) for size in cost.reads), cost.writes, cost.kernels)


def _groups(nodes: Sequence[Node], prices: Mapping[Node, Price]) -> list[list[Node]]:
    """Nodes by kernel, in the order of their last node: only then has all of a kernel run."""
    found: dict[object, list[Node]] = {}
    for node in nodes:
        fuse = node.hints.get("fuse")
        fused = isinstance(fuse, int) and not node.regions
        key: object = ("fuse", fuse) if fused else node
        group = found.pop(key, [])
        group.append(node)
        found[key] = group
    return list(found.values())


def _bases(nodes: Sequence[Node], prices: Mapping[Node, Price]) -> dict[Value, Value]:
    """For each result of a view the value whose memory it shows."""
    base: dict[Value, Value] = {}
    for node in nodes:
        if node in prices and prices[node].kind == "view":
            source = node.operands[0]
            for value in node.results:
                base[value] = base.get(source, source)
    return base


def _kernel(
    group: Sequence[Node],
    prices: Mapping[Node, Price],
    base: Mapping[Value, Value],
    written: dict[Value, bool],
) -> Kernel | None:
    working = [node for node in group if not prices[node].free]
    if not working:
        return None
    members = set(group)
    made = {v for node in working for v in node.results}
    reads: dict[Value, tuple[Dim, ...]] = {}
    writes = []
    for node in working:
        cost = prices[node]
        for value, size in zip(node.operands, cost.reads, strict=True):
            origin = base.get(value, value)
            if origin not in made and size != 0:
                earlier = reads.get(origin, ())
                reads[origin] = earlier if size in earlier else (*earlier, size)
    shown = _shown(group, base)
    for node in working:
        for value, size in zip(node.results, prices[node].writes, strict=True):
            outside = any(user not in members for v in (value, *shown.get(value, ())) for user in v.uses)
            written[value] = outside or (len(group) == 1 and size != 0)
            if written[value]:
                writes.append(size)
    if len(group) == 1:
        only = prices[working[0]]
        return Kernel((only,), tuple((size,) for size in only.reads if size != 0), tuple(writes), only.kernels)
    return Kernel(tuple(prices[n] for n in working), tuple(reads.values()), tuple(writes), 1)


def _shown(group: Sequence[Node], base: Mapping[Value, Value]) -> dict[Value, list[Value]]:
    """Views made within the group, by the value that they show."""
    views: dict[Value, list[Value]] = {}
    for node in group:
        for value in node.results:
            if value in base:
                views.setdefault(base[value], []).append(value)
    return views


def _memory(
    block: Block,
    nodes: Sequence[Node],
    groups: Sequence[Sequence[Node]],
    base: Mapping[Value, Value],
    written: Mapping[Value, bool],
    inside: Mapping[Node, tuple[BlockPlan, ...]],
) -> tuple[tuple[tuple[Dim, ...], tuple[Dim, ...], tuple[BlockPlan, ...]], ...]:
    place = {node: index for index, node in enumerate(nodes)}
    ends = {node: max(place[n] for n in group) for group in groups for node in group}
    last: dict[Value, int] = {}
    for node in nodes:  # a value lives until the last kernel that reads it, or a view of it, has ended
        for value in (*node.operands, *node.results):
            origin = base.get(value, value)
            last[origin] = max(last.get(origin, 0), ends[node])
    for value in block.returned.operands:
        last[base.get(value, value)] = len(nodes)
    freed: list[list[Dim]] = [[] for _ in range(len(nodes) + 1)]
    allocated: list[list[Dim]] = [[] for _ in nodes]
    for node in nodes:
        for value in node.results:
            size = bytes_of(value.type)
            if value not in base and size != 0 and written.get(value, bool(node.regions)):
                allocated[place[node]].append(size)
                freed[last[value]].append(size)
    return tuple((tuple(allocated[i]), tuple(freed[i]), inside.get(node, ())) for i, node in enumerate(nodes))
