"""Whole models, as files: adapters and checkpoints inspected, extracted, resized, merged, planned for.

The public API of this package. Safetensors and Numba are imported when they are first used.
"""

from lowrank_core.models.executors import dask_cluster, local_processes
from lowrank_core.models.files.checkpoints import (
    Checkpoint,
    CheckpointPair,
    WeightPair,
    open_checkpoint,
    pair_checkpoints,
)
from lowrank_core.models.formats import Adapter, AdapterLayer, OtherTensor, open_adapter
from lowrank_core.models.inspection.census import census
from lowrank_core.models.inspection.census_rows import AdapterRow, read_census
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.inspection.report import Inspection, LayerReport, Totals
from lowrank_core.models.operations.compression import Compression, CompressionTotals, LayerCompression
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.planning import Plan, PlannedLayer, UniformRank, plan
from lowrank_core.models.operations.rank_choice import AboveNoise, Budget
from lowrank_core.models.operations.resizing import resize
from lowrank_core.models.results import to_json

__all__ = [
    "AboveNoise",
    "Adapter",
    "AdapterLayer",
    "AdapterRow",
    "Budget",
    "Checkpoint",
    "CheckpointPair",
    "Compression",
    "CompressionTotals",
    "Inspection",
    "LayerCompression",
    "LayerReport",
    "OtherTensor",
    "Plan",
    "PlannedLayer",
    "Totals",
    "UniformRank",
    "WeightPair",
    "census",
    "dask_cluster",
    "extract",
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
]
