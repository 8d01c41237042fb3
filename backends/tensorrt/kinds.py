"""Every primitive kind that has a form in native layers."""

from __future__ import annotations

from collections.abc import Mapping

from backends.tensorrt.elementwise import ELEMENTWISE
from backends.tensorrt.indexing import INDEXING
from backends.tensorrt.network import Kind
from backends.tensorrt.products import PRODUCTS
from backends.tensorrt.recurrent import RECURRENT
from backends.tensorrt.reductions import REDUCTIONS
from backends.tensorrt.shapes import SHAPES

KINDS: Mapping[str, Kind] = {**ELEMENTWISE, **SHAPES, **REDUCTIONS, **PRODUCTS, **INDEXING, **RECURRENT}
