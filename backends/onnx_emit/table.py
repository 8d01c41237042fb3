"""Every operator that has an ONNX form: its name and the function that emits it."""

from __future__ import annotations

from collections.abc import Mapping

from backends.onnx_emit.activations import ACTIVATIONS
from backends.onnx_emit.arithmetic import ARITHMETIC
from backends.onnx_emit.attention import ATTENTION
from backends.onnx_emit.convolutions import CONVOLUTIONS
from backends.onnx_emit.create import CREATE
from backends.onnx_emit.indexing import INDEXING
from backends.onnx_emit.narrow import NARROW
from backends.onnx_emit.norms import NORMS
from backends.onnx_emit.pointwise import POINTWISE, Emitter
from backends.onnx_emit.products import PRODUCTS
from backends.onnx_emit.quantized import QUANTIZED
from backends.onnx_emit.recurrent import RECURRENT
from backends.onnx_emit.reductions import REDUCTIONS
from backends.onnx_emit.sizes import SIZES
from backends.onnx_emit.views import VIEWS

FAMILIES = (
    POINTWISE, ARITHMETIC, ACTIVATIONS, VIEWS, SIZES, CREATE, PRODUCTS, CONVOLUTIONS, ATTENTION, NORMS, REDUCTIONS,
    INDEXING, QUANTIZED, NARROW, RECURRENT,
)  # fmt: skip
EMITTERS: Mapping[str, Emitter] = {name: emit for family in FAMILIES for name, emit in family.items()}
