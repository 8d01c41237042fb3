"""The report: plain data, tables within 100 columns, one page that trusts nothing from a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from compiler.events import Phases
from compiler.instruments import comparing, counting, pricing, timing
from compiler.measure import Timing
from compiler.pipeline import PassRecord, Pipeline
from compiler.recipe import Recipe, recipe
from compiler.reference import Loss
from compiler.select import Candidate
from compiler.targets import Target, read_cpu
from ir import Graph
from ir.copy import copy_graph
from passes import PASSES, Remark, parse_passes
from tests.corpus import add_weights
