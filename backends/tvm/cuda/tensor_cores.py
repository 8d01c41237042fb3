"""A schedule that puts a matmul on tensor cores: ``C[s, i, j] = sum over k of A[s, i, k] * B[s, j, k]``.

The loops are those of TVM's ``dlight.gpu.matmul.MatmulTensorization`` (a block of the result per thread block, the
next operands loaded while these are multiplied, 16 x 16 x 16 fragments by ``wmma``), with what that rule lacks:
bfloat16, attention heads of 64 (it wants more), and a block that leaves the shared memory of every device room for
sums in float32: its own takes 66 KiB, more than compute capability 7.5 has. Sizes may be symbolic; edges are padded
within shared memory.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import get_root_block
from tvm.s_tir.dlight.gpu import matmul as dlight
from tvm.s_tir.dlight.gpu.base import GPUScheduleRule
from tvm.target import Target

from backends.tvm.cuda.intrinsics import SHARED, TILE, register

SUMS = {"float16": "float32", "bfloat16": "float32", "int8": "int32"}
"""dtype of the operands -> dtype of the sums, as tensor cores form them."""
LEAST = {"float16": 70, "bfloat16": 80, "int8": 72}
"""The compute capability that first had them."""

_WARP, _VECTOR = 32, 4
_ROWS, _COLUMNS = (2, 2), (4, 2)
"""A thread block makes 64 x 128 of the result: (warps, fragments per warp) each way."""
_DEPTH = 2
"""Fragments of k at a time."""
_SMALLEST = TILE
"""Below this a fixed size leaves most of a fragment empty."""
_ALIGNED = {"float16": (16, 8), "bfloat16": (16, 8), "int8": (32, 16)}
"""Rows in shared memory are this many elements, plus so many that lie between banks."""


class TensorCoreMatmul(GPUScheduleRule):
    """Takes a function with one matmul of f16, bf16 or int8 and whatever is fused before and after it."""

    def apply(self, func: tirx.PrimFunc, target: Target, _: bool) -> s_tir.Schedule | None:
        """The schedule, or ``None`` for a function that is no such matmul."""
        schedule = s_tir.Schedule(func)
        blocks = schedule.get_child_blocks(get_root_block(schedule))
        products = dlight.get_reduction_blocks(schedule, blocks)
        if products is None:
            return None
        product = products[0]
        maps = dlight.get_index_map(schedule.get(product))
        if maps is None:
            return None
        inputs, sums = (str(t) for t in dlight.get_in_out_dtypes(schedule.get(product)))
        capability = int(str(target.attrs["arch"]).removeprefix("sm_"))
        if SUMS.get(inputs) != sums or capability < LEAST[inputs]:
            return None
        _normalize(schedule, product, maps)
        extents = [axis.dom.extent for axis in schedule.get(product).iter_vars[1:]]
        if any(isinstance(size, tirx.IntImm) and size.value < _SMALLEST for size in extents):
            return None
        return _scheduled(schedule, product, register(inputs, sums), inputs)


def _normalize(schedule: Any, product: Any, maps: Any) -> None:
    """Bring the loops to ``s, i, j, k`` and pad ``i, j, k`` to whole thread blocks."""
    whole, left, right, result = maps
    reads = [schedule.reindex(product, ("read", at)) for at in (0, 1)]
    written = schedule.reindex(product, ("write", 0))
    schedule.transform_layout(reads[0], ("write", 0), left)
    schedule.transform_layout(reads[1], ("write", 0), right)
    schedule.transform_layout(written, ("read", 0), result)
    schedule.transform_block_layout(product, whole)


def _scheduled(schedule: Any, product: Any, intrinsics: dict[str, str], dtype: str) -> s_tir.Schedule:
    warps, depth, aligned = _ROWS[0] * _COLUMNS[0], _DEPTH, _ALIGNED[dtype]
    schedule.pad_einsum(product, [1, TILE * _ROWS[0] * _ROWS[1], TILE * _COLUMNS[0] * _COLUMNS[1], TILE * depth])
    batch, i, j, k = schedule.get_loops(product)
    i, i_inner = schedule.split(i, factors=[None, TILE])
    j, j_inner = schedule.split(j, factors=[None, TILE])
    k, k_inner = schedule.split(k, factors=[None, TILE])
    schedule.reorder(i, j, k, i_inner, j_inner, k_inner)
    fragment = schedule.blockize(i_inner)

    i0, i1, i2 = schedule.split(i, factors=[None, *_ROWS])
    j0, j1, j2 = schedule.split(j, factors=[None, *_COLUMNS])
    k0, k1 = schedule.split(k, factors=[None, depth])
    # load the next operands into registers, multiply these, then move the next into shared memory
    schedule.annotate(k0, "software_pipeline_order", [0, 3, 1, 4, 5, 2, 6])
    schedule.annotate(k0, "software_pipeline_stage", [0, 0, 0, 0, 0, 1, 1])
    schedule.annotate(k1, "software_pipeline_order", [0, 1, 2])
    schedule.annotate(k1, "software_pipeline_stage", [0, 0, 1])
    schedule.reorder(i0, j0, j1, i1, k0, k1, i2, j2)
    warp = schedule.fuse(j1, i1)
    schedule.bind(batch, "blockIdx.z")
    schedule.bind(i0, "blockIdx.x")
    schedule.bind(j0, "blockIdx.y")
    schedule.bind(warp, "threadIdx.y")

    for operand in (0, 1):
        dlight.auto_inline_producers(schedule, _fetched(schedule, fragment, operand, k0, warps, aligned))
    fragments = [schedule.cache_read(fragment, at, f"wmma.matrix_{'ab'[at]}") for at in (0, 1)]
    for operand in fragments:
        schedule.compute_at(operand, k1)
    result = schedule.cache_write(fragment, 0, SHARED)
    schedule.storage_align(result, 0, -2, 16, 4)
    store = schedule.cache_write(fragment, 0, "wmma.accumulator")
    schedule.reverse_compute_at(store, warp)
    schedule.reverse_compute_at(result, warp)
    _tiled(schedule, store)
    fill = schedule.get_child_blocks(schedule.decompose_reduction(fragment, k0))[0]

    for operand, name in zip(fragments, (intrinsics["load_a"], intrinsics["load_b"]), strict=True):
        rows, columns, inner = _tiled(schedule, operand)
        schedule.unroll(rows)
        schedule.unroll(columns)
        schedule.tensorize(inner, name)
    schedule.tensorize(schedule.get_loops(fill)[-2], intrinsics["fill"])
    schedule.tensorize(schedule.get_loops(store)[-2], intrinsics["store"])
    schedule.tensorize(schedule.get_loops(product)[-3], intrinsics["multiply"])

    dlight.auto_inline_consumer_chain(schedule, result)
    _, lane, vector = schedule.split(schedule.fuse(*schedule.get_loops(result)[-2:]), factors=[None, _WARP, _VECTOR])
    schedule.bind(lane, "threadIdx.x")
    schedule.vectorize(vector)
    return schedule


def _fetched(schedule: Any, fragment: Any, operand: int, at: Any, warps: int, aligned: tuple[int, int]) -> Any:
    """Copy a block of an operand to shared memory, all threads together."""
    block = schedule.cache_read(fragment, operand, SHARED)
    schedule.compute_at(block, at)
    elements = schedule.fuse(*schedule.get_loops(block)[-2:])
    _, warp, lane, vector = schedule.split(elements, factors=[None, warps, _WARP, _VECTOR])
    schedule.bind(lane, "threadIdx.x")
    schedule.bind(warp, "threadIdx.y")
    schedule.vectorize(vector)
    schedule.storage_align(block, 0, axis=-2, factor=aligned[0], offset=aligned[1])
    schedule.annotate(block, "tirx.manifest_shared_memory_local_stage", 1)
    schedule.annotate(block, "double_buffer_scope", 0)
    return block


def _tiled(schedule: Any, block: Any) -> tuple[Any, Any, Any]:
    """Split the last two loops of a block into fragments: loops over fragments down and across, and the rows within."""
    i, j = schedule.get_loops(block)[-2:]
    i0, i1 = schedule.split(i, factors=[None, TILE])
    j0, j1 = schedule.split(j, factors=[None, TILE])
    schedule.reorder(i0, j0, i1, j1)
    return i0, j0, i1
