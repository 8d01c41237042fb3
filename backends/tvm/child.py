"""The builder, in a process of its own: IR text and weights in, library out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.base import WEIGHTS_FILE
from backends.child import serve
from backends.tvm.payload import Payload


def build(request: dict[str, Any], heard: Callable[[str, float], None]) -> dict[str, Any]:
    """Write the payload of a graph.

    Args:
        request: ``text`` of the graph, ``folder``, ``stem``, ``level`` of the processor.
        heard: is told the phase and the fraction done.
    """
    from backends.tvm.cpu.forms import forms_of
    from backends.tvm.cpu.target import cpu_here, named
    from backends.tvm.emit import module_of
    from backends.tvm.link import link
    from backends.tvm.pipeline import compiled
    from ir import parse
    from ir.weights import load, save

    folder, stem = Path(request["folder"]), request["stem"]
    heard("emit", 0.0)
    graph = parse(request["text"], load(folder / WEIGHTS_FILE))
    cpu = named(request["level"]) if request["level"] else cpu_here()
    emitted = module_of(graph, forms_of(cpu))
    executable = compiled(emitted.module, cpu, heard)
    link(executable, folder / f"{stem}.so")
    save(emitted.packed, folder / f"{stem}.packed.safetensors")
    written = Payload(
        arguments=tuple((a.kind, a.name) for a in emitted.arguments),
        outputs=tuple(o.key for o in graph.outputs),
        flags=cpu.flags,
        facts={"ifs": emitted.branches, **kernel_facts(executable)},
    )
    (folder / f"{stem}.tvm.json").write_text(json.dumps(written.to_json(), indent=1))
    return {"flags": list(cpu.flags), "facts": dict(written.facts), "code": executable.as_text()}


def kernel_facts(executable: Any) -> dict[str, int]:
    """Kernels by kind, from the calls that the executable makes."""
    from backends.tvm.payload import count_kernels

    return count_kernels(executable.as_text())


if __name__ == "__main__":
    serve(build)
