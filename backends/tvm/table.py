"""Every operator that has a neutral form: its name and the function that emits it."""

from __future__ import annotations

from collections.abc import Mapping

from backends.tvm.attention import ATTENTION
from backends.tvm.convolutions import CONVOLUTIONS
from backends.tvm.create import CREATE
from backends.tvm.indexing import INDEXING
from backends.tvm.norms import NORMS
from backends.tvm.pointwise import POINTWISE
from backends.tvm.products import PRODUCTS
from backends.tvm.quantized import QUANTIZED
from backends.tvm.reductions import REDUCTIONS
from backends.tvm.scope import Emitter
from backends.tvm.sizes import SIZES
from backends.tvm.views import VIEWS

FAMILIES = (
    POINTWISE, VIEWS, SIZES, CREATE, PRODUCTS, CONVOLUTIONS, ATTENTION, NORMS, REDUCTIONS, INDEXING, QUANTIZED,
)  # fmt: skip
EMITTERS: Mapping[str, Emitter] = {name: emit for family in FAMILIES for name, emit in family.items()}

IGNORED = frozenset({
    "aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_async.default",
    "aten._assert_scalar.default", "aten.sym_constrain_range.default", "aten.sym_constrain_range_for_size.default",
    "aten._functional_assert_async.msg", "aten._functional_sym_constrain_range.default",
})  # fmt: skip
"""Checks of what was exported: they compute nothing, and the compiler checks inputs itself."""
