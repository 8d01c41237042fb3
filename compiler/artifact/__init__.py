"""The artifact: a directory NAME.penstock/ that holds a compiled model, whole, checked, self-describing.

Write: ``with staging(path) as folder:`` write the files, then ``seal(folder, manifest)``. Read:
``open_artifact(path)``. Several targets: a bundle, see ``bundle``. Layout::

    manifest.json, manifest.sha256   what it is; digest of every file; digest of the manifest
    before.ir, after.ir              the graph as captured, and as compiled
    weights.safetensors              of the graph after
    states.safetensors               initial content of states, if the model came with any
    (payload)                        what the engine loads, such as engine.onnx
    report.html, report.json         for people, for programs
"""

from compiler.artifact.bundle import Bundle, Member, is_bundle, member, open_bundle, seal_bundle
from compiler.artifact.manifest import (
    AFTER,
    BEFORE,
    MANIFEST,
    SCHEMA,
    SEAL,
    STATES,
    DeviceNeed,
    EngineChoice,
    FileFact,
    Manifest,
    Port,
    penstock_version,
    ports,
)
from compiler.artifact.nonfinite import Nonfinite, check_weights, find_nonfinite
from compiler.artifact.processor import Processor, cpu_flags, cpu_model
from compiler.artifact.sealing import Artifact, ChangedError, copy_artifact, open_artifact, seal
from compiler.artifact.staging import reclaim, staging
from compiler.artifact.storage import storage_error, storage_errors
from compiler.artifact.strict import read_manifest

__all__ = [
    "AFTER",
    "BEFORE",
    "MANIFEST",
    "SCHEMA",
    "SEAL",
    "STATES",
    "Artifact",
    "Bundle",
    "ChangedError",
    "DeviceNeed",
    "EngineChoice",
    "FileFact",
    "Manifest",
    "Member",
    "Nonfinite",
    "Port",
    "Processor",
    "check_weights",
    "copy_artifact",
    "cpu_flags",
    "cpu_model",
    "find_nonfinite",
    "is_bundle",
    "member",
    "open_artifact",
    "open_bundle",
    "penstock_version",
    "ports",
    "read_manifest",
    "reclaim",
    "seal",
    "seal_bundle",
    "staging",
    "storage_error",
    "storage_errors",
]  # fmt: skip
