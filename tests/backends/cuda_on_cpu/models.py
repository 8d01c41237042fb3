"""IR texts of the models that are built for CUDA."""

from __future__ import annotations


def block(dtype: str, width: int = 128, heads: int = 2) -> str:
    """A transformer block over a batch and a length that are symbols; heads of 64."""
    d, h, k, f = width, heads, width // heads, 4 * width
    return f"""
penstock-ir 1
graph "block"
dim b [1, 64]
dim s [1, 512]
input %x: {dtype}[b, s, {d}] "x"
param %g: {dtype}[{d}] "g"
param %z: {dtype}[{d}] "z"
param %wq: {dtype}[{d}, {d}] "wq"
param %wk: {dtype}[{d}, {d}] "wk"
param %wv: {dtype}[{d}, {d}] "wv"
param %wo: {dtype}[{d}, {d}] "wo"
param %w1: {dtype}[{f}, {d}] "w1"
param %c1: {dtype}[{f}] "c1"
param %w2: {dtype}[{d}, {f}] "w2"
%nb: int<b> = aten.sym_size.int(%x, 0)
%ns: int<s> = aten.sym_size.int(%x, 1)
%n: {dtype}[b, s, {d}] = aten.layer_norm.default(%x, [{d}], %g, %z, 1e-05)
%q0: {dtype}[b, s, {d}] = aten.linear.default(%n, %wq)
%q1: {dtype}[b, s, {h}, {k}] = aten.view.default(%q0, [%nb, %ns, {h}, {k}])
%q: {dtype}[b, {h}, s, {k}] = aten.permute.default(%q1, [0, 2, 1, 3])
%k0: {dtype}[b, s, {d}] = aten.linear.default(%n, %wk)
%k1: {dtype}[b, s, {h}, {k}] = aten.view.default(%k0, [%nb, %ns, {h}, {k}])
%k: {dtype}[b, {h}, s, {k}] = aten.permute.default(%k1, [0, 2, 1, 3])
%v0: {dtype}[b, s, {d}] = aten.linear.default(%n, %wv)
%v1: {dtype}[b, s, {h}, {k}] = aten.view.default(%v0, [%nb, %ns, {h}, {k}])
%v: {dtype}[b, {h}, s, {k}] = aten.permute.default(%v1, [0, 2, 1, 3])
%o: {dtype}[b, {h}, s, {k}] = aten.scaled_dot_product_attention.default(%q, %k, %v)
%o1: {dtype}[b, s, {h}, {k}] = aten.permute.default(%o, [0, 2, 1, 3])
%o2: {dtype}[b, s, {d}] = aten.reshape.default(%o1, [%nb, %ns, {d}])
%o3: {dtype}[b, s, {d}] = aten.linear.default(%o2, %wo)
%r: {dtype}[b, s, {d}] = aten.add.Tensor(%x, %o3)
%m: {dtype}[b, s, {d}] = aten.layer_norm.default(%r, [{d}], %g, %z, 1e-05)
%m1: {dtype}[b, s, {f}] = aten.linear.default(%m, %w1, %c1)
%m2: {dtype}[b, s, {f}] = aten.gelu.default(%m1)
%m3: {dtype}[b, s, {d}] = aten.linear.default(%m2, %w2)
%y: {dtype}[b, s, {d}] = aten.add.Tensor(%r, %m3)
return "y" %y
"""


def int8() -> str:
    """A linear with int8 weights and activations."""
    return """
penstock-ir 1
graph "int8"
dim n [1, 512]
input %x: f32[n, 64] "x"
param %w: i8[48, 64] "w"
param %k: f32[48] "k"
param %c: f32[48] "c"
param %t: f32[] "t"
%y: f32[n, 48] = penstock.int8_linear_static.default(%x, %w, %k, %c, %t, 128)
%z: f32[n, 48] = penstock.int8_linear_dynamic.default(%x, %w, %k, %c)
return "y" %y, "z" %z
"""
