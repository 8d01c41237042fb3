"""Graphs with branches and loops, as text; the weight is ``w``."""

from __future__ import annotations

EXIT = """
penstock-ir 1
graph "exit"
dim n [1, 64]
input %x: f32[n, 4] "x"
param %w: f32[4, 4] "w"
%top: f32[] = aten.amax.default(%x)
%sure: bool[] = aten.gt.Scalar(%top, 0.0)
%y: f32[n, 4] = cond(%sure, [%x, %w]) do
region(%a: f32[n, 4], %b: f32[4, 4])
  %c: f32[n, 4] = aten.clone.default(%a)
  return %c
end
region(%a2: f32[n, 4], %b2: f32[4, 4])
  %d: f32[n, 4] = aten.linear.default(%a2, %b2)
  %e: f32[n, 4] = aten.linear.default(%d, %b2)
  return %e
end
%z: f32[n, 4] = aten.add.Tensor(%y, %x)
return "z" %z
"""

NESTED = """
penstock-ir 1
graph "nested"
dim n [1, 64]
input %x: f32[n, 4] "x"
param %w: f32[4, 4] "w"
%n1: int<n> = aten.sym_size.int(%x, 0)
%many: bool = sym.gt(%n1, 2)
%y: f32[n, 4], %k: f32[] = cond(%many, [%x, %w, %n1]) do
region(%a: f32[n, 4], %b: f32[4, 4], %s: int<n>)
  %top: f32[] = aten.amax.default(%a)
  %low: bool[] = aten.lt.Scalar(%top, 0.0)
  %r: f32[n, 4] = cond(%low, [%a, %b]) do
  region(%a1: f32[n, 4], %b1: f32[4, 4])
    %m: f32[n, 4] = aten.matmul.default(%a1, %b1)
    return %m
  end
  region(%a2: f32[n, 4], %b2: f32[4, 4])
    return %a2
  end
  %one: f32[] = aten.scalar_tensor.default(1.0)
  return %r, %one
end
region(%a3: f32[n, 4], %b3: f32[4, 4], %s3: int<n>)
  %f: f32[n, 2] = aten.full.default([%s3, 2], 3.0)
  %g: f32[n, 4] = aten.cat.default([%f, %f], 1)
  %h: f32[] = aten.sum.default(%g)
  return %g, %h
end
return "y" %y, "k" %k
"""

LOOP = """
penstock-ir 1
graph "loop"
dim n [1, 64]
input %x: f32[n, 4] "x"
input %limit: i64[] "limit"
param %w: f32[4, 4] "w"
%zero: i64[] = aten.scalar_tensor.default(0, dtype=!i64)
%i: i64[], %y: f32[n, 4] = while([%zero, %x], [%limit, %w]) do
region(%i0: i64[], %y0: f32[n, 4], %l0: i64[], %w0: f32[4, 4])
  %more: bool[] = aten.lt.Tensor(%i0, %l0)
  return %more
end
region(%i1: i64[], %y1: f32[n, 4], %l1: i64[], %w1: f32[4, 4])
  %next: i64[] = aten.add.Tensor(%i1, 1)
  %p: f32[n, 4] = aten.linear.default(%y1, %w1)
  %odd: i64[] = aten.remainder.Scalar(%i1, 2)
  %is_odd: bool[] = aten.eq.Scalar(%odd, 1)
  %q: f32[n, 4] = cond(%is_odd, [%p]) do
  region(%p1: f32[n, 4])
    %t: f32[n, 4] = aten.tanh.default(%p1)
    return %t
  end
  region(%p2: f32[n, 4])
    return %p2
  end
  return %next, %q
end
return "i" %i, "y" %y
"""
