"""What lies beside the library: its calling convention, its needs, what it contains. Read strictly, without TVM."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ir.errors import UntrustedError

TVM = "0.27.0.post1"
FFI = "0.1.14.post1"
"""The pair that was tried; a newer ffi crashes this TVM."""
_KINDS = ("input", "state", "param", "packed")
PRODUCT = re.compile(r"matmul|gemm|conv|einsum|bilinear")
"""In the name of a kernel that multiplies matrices."""
_CALL = re.compile(r"\bcall\s+(\S+)")


@dataclass(frozen=True)
class Payload:
    """``STEM.tvm.json``.

    Attributes:
        arguments: kind and name of each argument of ``main``; params lie in ``weights.safetensors``, packed ones in
            ``STEM.packed.safetensors``.
        outputs: names of the results, in order.
        flags: of the processor that must be there.
        facts: what the library contains.
    """

    arguments: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    flags: tuple[str, ...] = ()
    facts: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "version": 1,
            "tvm": TVM,
            "ffi": FFI,
            "arguments": [list(a) for a in self.arguments],
            "outputs": list(self.outputs),
            "flags": list(self.flags),
            "facts": dict(self.facts),
        }


def read(path: Path) -> Payload:
    """What ``to_json`` wrote.

    Raises:
        UntrustedError: the file is not that.
    """
    try:
        raw = json.loads(path.read_text())
        arguments = tuple((str(kind), str(name)) for kind, name in raw["arguments"])
        made = Payload(
            arguments,
            tuple(map(str, raw["outputs"])),
            tuple(map(str, raw["flags"])),
            {str(k): int(v) for k, v in raw["facts"].items()},
        )
        if raw["version"] != 1 or not all(kind in _KINDS for kind, _ in arguments):
            raise ValueError("another form")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedError(f"{path.parent} holds no TVM engine") from error
    return made


def count_kernels(text: str) -> dict[str, int]:
    """Kernels by kind, from the listing of an executable's calls."""
    names = Counter(m.group(1) for m in _CALL.finditer(text))
    own = {n: c for n, c in names.items() if not n.startswith("vm.builtin")}
    int8 = sum(c for n, c in own.items() if re.match(r"int8_(gemm|matmul)", n))
    products = sum(c for n, c in own.items() if PRODUCT.search(n))
    few = sum(c for n, c in own.items() if re.match(r"int(4|8_weight)_gemm", n))
    return {"kernels": sum(own.values()), "matmuls": products, "int8_matmuls": int8, "weight_only_matmuls": few,
            "attentions": sum(c for n, c in own.items() if "attention" in n)}  # fmt: skip
