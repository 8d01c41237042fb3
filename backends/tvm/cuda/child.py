"""The builder for CUDA, in a process of its own: IR text and weights in, library with cubins out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.base import WEIGHTS_FILE
from backends.child import serve
from backends.tvm.cuda.archs import arch_of
from backends.tvm.cuda.compile import compile_module, prepare
from backends.tvm.cuda.toolchain import toolchain


def build(request: dict[str, Any], heard: Callable[[str, float], None]) -> dict[str, Any]:
    """Write the payload of a graph.

    Args:
        request: ``text`` of the graph, ``folder``, ``stem``, ``capability`` of the GPU.
        heard: is told the phase and the fraction done.
    """
    tools = toolchain()
    prepare(tools)
    from backends.tvm.cuda.forms import FORMS
    from backends.tvm.emit import module_of
    from backends.tvm.payload import Payload
    from ir import parse
    from ir.weights import load, save

    heard("emit", 0.0)
    folder, stem = Path(request["folder"]), request["stem"]
    arch = arch_of(request["capability"])
    assert arch is not None, "why_not said so"
    graph = parse(request["text"], load(folder / WEIGHTS_FILE))
    emitted = module_of(graph, FORMS)
    made = compile_module(emitted.module, arch, folder / f"{stem}.so", tools, heard)
    save(emitted.packed, folder / f"{stem}.packed.safetensors")
    written = Payload(
        arguments=tuple((a.kind, a.name) for a in emitted.arguments),
        outputs=tuple(o.key for o in graph.outputs),
        flags=(arch.name,),
        facts={"ifs": emitted.branches, **{k: v for k, v in made["facts"].items() if isinstance(v, int)}},
    )
    (folder / f"{stem}.tvm.json").write_text(json.dumps(written.to_json(), indent=1))
    return {**made, "compiler": tools.compiler, "branches": emitted.branches}


if __name__ == "__main__":
    serve(build)
