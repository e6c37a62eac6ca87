"""Whole models, as files: adapters and checkpoints inspected, extracted, resized, merged, planned for."""
# A name is imported when it is first used.

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_core.models.executors import dask_cluster, local_processes
    from lowrank_core.models.files.checkpoints import Checkpoint, open_checkpoint
    from lowrank_core.models.formats import Adapter, AdapterLayer, OtherTensor, open_adapter
    from lowrank_core.models.inspection.census import census
    from lowrank_core.models.inspection.census_rows import AdapterRow, read_census
    from lowrank_core.models.inspection.layers import inspect
    from lowrank_core.models.inspection.report import BaseFigures, Inspection, LayerReport, Totals, Verdict
    from lowrank_core.models.operations.applying import Application, AppliedLayer, apply
    from lowrank_core.models.operations.compared import ComparedLayer, ComparedPair, PairTotals, UpdateComparison
    from lowrank_core.models.operations.comparison import compare
    from lowrank_core.models.operations.compression import Compression, CompressionTotals, LayerCompression
    from lowrank_core.models.operations.conversion import convert
    from lowrank_core.models.operations.extraction import extract
    from lowrank_core.models.operations.history import RunHistory, history
    from lowrank_core.models.operations.history_rows import HistoryRow
    from lowrank_core.models.operations.merging import merge
    from lowrank_core.models.operations.planning import Plan, PlannedLayer, UniformRank, plan
    from lowrank_core.models.operations.rank_choice import AboveNoise, Budget
    from lowrank_core.models.operations.resizing import resize
    from lowrank_core.models.operations.training import history_callback
    from lowrank_core.models.operations.verification import Verification, verify
    from lowrank_core.models.operations.weight_checks import VerifiedLayer
    from lowrank_core.models.operations.weight_merging import RoundingLoss
    from lowrank_core.models.pairing.pairs import CheckpointPair, WeightPair, pair_checkpoints
    from lowrank_core.models.results import to_json

__all__ = [
    "AboveNoise",
    "Adapter",
    "AdapterLayer",
    "AdapterRow",
    "Application",
    "AppliedLayer",
    "BaseFigures",
    "Budget",
    "Checkpoint",
    "CheckpointPair",
    "ComparedLayer",
    "ComparedPair",
    "Compression",
    "CompressionTotals",
    "HistoryRow",
    "Inspection",
    "LayerCompression",
    "LayerReport",
    "OtherTensor",
    "PairTotals",
    "Plan",
    "PlannedLayer",
    "RoundingLoss",
    "RunHistory",
    "Totals",
    "UniformRank",
    "UpdateComparison",
    "Verdict",
    "Verification",
    "VerifiedLayer",
    "WeightPair",
    "apply",
    "census",
    "compare",
    "convert",
    "dask_cluster",
    "extract",
    "history",
    "history_callback",
    "inspect",
    "local_processes",
    "merge",
    "open_adapter",
    "open_checkpoint",
    "pair_checkpoints",
    "plan",
    "read_census",
    "resize",
    "to_json",
    "verify",
]

_MODULES = {
    "executors": "dask_cluster local_processes",
    "files.checkpoints": "Checkpoint open_checkpoint",
    "formats": "Adapter AdapterLayer OtherTensor open_adapter",
    "inspection.census": "census",
    "inspection.census_rows": "AdapterRow read_census",
    "inspection.layers": "inspect",
    "inspection.report": "BaseFigures Inspection LayerReport Totals Verdict",
    "operations.applying": "Application AppliedLayer apply",
    "operations.conversion": "convert",
    "operations.compared": "ComparedLayer ComparedPair PairTotals UpdateComparison",
    "operations.comparison": "compare",
    "operations.compression": "Compression CompressionTotals LayerCompression",
    "operations.extraction": "extract",
    "operations.history": "RunHistory history",
    "operations.history_rows": "HistoryRow",
    "operations.merging": "merge",
    "operations.planning": "Plan PlannedLayer UniformRank plan",
    "operations.rank_choice": "AboveNoise Budget",
    "operations.resizing": "resize",
    "operations.training": "history_callback",
    "operations.verification": "Verification verify",
    "operations.weight_checks": "VerifiedLayer",
    "operations.weight_merging": "RoundingLoss",
    "pairing.pairs": "CheckpointPair WeightPair pair_checkpoints",
    "results": "to_json",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
