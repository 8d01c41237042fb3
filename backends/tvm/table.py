"""Every operator that has a neutral form: its name and the function that emits it."""

from __future__ import annotations

from collections.abc import Mapping

from backends.tvm.activations import ACTIVATIONS
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
    POINTWISE, ACTIVATIONS, VIEWS, SIZES, CREATE, PRODUCTS, CONVOLUTIONS, ATTENTION, NORMS, REDUCTIONS, INDEXING,
    QUANTIZED,
)  # fmt: skip
EMITTERS: Mapping[str, Emitter] = {name: emit for family in FAMILIES for name, emit in family.items()}
