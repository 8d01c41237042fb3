"""Operators with a native form that is better than that of their primitives."""

from __future__ import annotations

from collections.abc import Mapping

from backends.onnx_emit.pointwise import Emitter

OPERATORS: Mapping[str, Emitter] = {}
