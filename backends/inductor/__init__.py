"""AOTInductor: torch's own compiler writes C++ (or Triton), a C++ compiler makes a library of it."""

from __future__ import annotations

from backends.inductor.backend import Inductor

__all__ = ["Inductor"]
