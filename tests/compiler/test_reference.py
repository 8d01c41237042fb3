"""Sizes of dims, read off inputs."""

import torch

from compiler.select.reference import sizes_of
from tests.passes.case import read


def test_sizes_come_from_plain_and_from_derived_dims() -> None:
    graph = read(
        """
        dim n [1, 8]
        dim h [1, 64]
        dim s [1, 64]
        dim t [1, 64]
        input %x: f32[n, 2*h, 3*s + 1, 4] "x"
        input %y: f32[s*t] "y"
        return "x" %x
        """
    )
    found = sizes_of(graph, {"x": torch.zeros(2, 10, 7, 4), "y": torch.zeros(12)})
    assert found == {"n": 2, "h": 5, "s": 2}  # s*t says nothing about one of them alone
