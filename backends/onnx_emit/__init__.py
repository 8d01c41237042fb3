"""The IR as one ONNX model, which both engines read."""

from backends.onnx_emit.emit import emit, unsupported

__all__ = ["emit", "unsupported"]
