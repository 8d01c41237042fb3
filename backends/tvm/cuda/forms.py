"""What CUDA kernels compute in their own way."""

from __future__ import annotations

from typing import Any

from backends.tvm.scalars import Functions
from backends.tvm.scope import Forms

_PRECISE = ("exp", "log", "sin", "cos", "tan", "tanh")


class CudaFunctions(Functions):
    """CUDA's own functions of f32 by name: TVM would take the fast ones, whose sine of a large angle is no sine."""

    def call(self, name: str, x: Any) -> Any:
        """A function by its TIR name."""
        from tvm import tirx

        if name in _PRECISE and str(x.ty.dtype) == "float32":
            return tirx.call_pure_extern("float32", f"{name}f", x)
        return super().call(name, x)


FORMS = Forms(functions=CudaFunctions())
