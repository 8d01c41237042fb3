"""Every pass, in the order of ``penstock passes``. A new one is a file, a line here, and a test."""

from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.canonicalize_scalars import CanonicalizeScalars
from passes.canonicalize_views import CanonicalizeViews
from passes.cast_compute import CastCompute
from passes.depth import Depth
from passes.drop_dead_nodes import DropDeadNodes
from passes.fold_constants import FoldConstants
from passes.lower_rows import LowerRows
from passes.mark_fusion import MarkFusion
from passes.match_attention import MatchAttention
from passes.match_rms_norm import MatchRmsNorm
from passes.match_rows import MatchRows
from passes.merge_common_nodes import MergeCommonNodes
from passes.options import parse_passes, show_pass
from passes.quantize import Quantize
from passes.quantize_attention import QuantizeAttention
from passes.quantize_floats import QuantizeFloats
from passes.quantize_weights import QuantizeWeights
from passes.remove_no_ops import RemoveNoOps
from passes.simplify_masks import SimplifyMasks

PASSES: tuple[type[Pass], ...] = (
    CanonicalizeViews,
    CanonicalizeScalars,
    RemoveNoOps,
    MatchRmsNorm,
    MatchAttention,
    FoldConstants,
    SimplifyMasks,
    MergeCommonNodes,
    DropDeadNodes,
    CastCompute,
    Quantize,
    QuantizeAttention,
    QuantizeWeights,
    QuantizeFloats,
    Depth,
    MatchRows,
    LowerRows,
    MarkFusion,
)

__all__ = [
    "PASSES", "CanonicalizeScalars", "CanonicalizeViews", "CastCompute", "Depth", "DropDeadNodes", "FoldConstants",
    "LowerRows", "MarkFusion", "MatchAttention", "MatchRmsNorm", "MatchRows", "MergeCommonNodes", "Pass", "Quantize",
    "QuantizeAttention", "QuantizeFloats", "QuantizeWeights", "Remark", "RemoveNoOps", "Samples", "SimplifyMasks",
    "Tolerance", "parse_passes", "remark", "show_pass",
]  # fmt: skip
