"""Penstock, a compiler for adaptive inference: ``import penstock``.

result = penstock.compile(model, example_inputs={...}, dynamic_shapes={...})
engine = penstock.load(result.path)
outputs = engine(input_ids=..., attention_mask=...)
"""

from compiler.capture.capture import capture
from compiler.compile import CompileResult, compile
from compiler.runtime.loaded import InputError, LoadedModel, load
from compiler.settings import Settings
from compiler.spec import Dim, Metric, ModelSpec
from ir import Graph, interpret, parse, show, verify
from ir.errors import PenstockError as Error
from passes import PASSES, Pass, Remark, Tolerance

__all__ = [
    "PASSES", "CompileResult", "Dim", "Error", "Graph", "InputError", "LoadedModel", "Metric", "ModelSpec", "Pass",
    "Remark", "Settings", "Tolerance", "capture", "compile", "interpret", "load", "parse", "show", "verify",
]  # fmt: skip
