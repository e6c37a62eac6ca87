"""Quantised weights of checkpoints: the tensors that a weight is stored as become one tensor under its name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lowrank_core.models.files.packed_weights import (
    find_bitsandbytes,
    find_fp4,
    find_mxfp4_blocks,
    find_stray_scales,
    find_unread,
)
from lowrank_core.models.files.quantised_weight import QuantisedWeight, Tensors
from lowrank_core.models.files.scaled_bytes import find_scaled_bytes
from lowrank_core.models.files.tensors import StoredTensor

__all__ = ["check_dequantised", "combine_quantised"]

# ComfyUI's mark of a file whose weights have scales.
_MARKER = "scaled_fp8"
_DEQUANTISED_BY = {
    "GPTQ": "GPTQModel makes one (dequantize_model)",
    "AWQ": "GPTQModel makes one (dequantize_model)",
    "bitsandbytes": "load it with transformers, call model.dequantize(), and save it",
    "MXFP4": "load it with transformers and Mxfp4Config(dequantize=True), and save it",
}
_OTHERWISE = "the program that wrote it may make one, or take the checkpoint that it was made from"


def combine_quantised(tensors: Tensors, block: tuple[int, ...] | None = None) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint, each quantised weight as one tensor, which is dequantised as it is read.

    `block` is the shape of the blocks that have a scale each, where the checkpoint's configuration says it.
    """
    combined = dict(tensors)
    find_scaled = partial(find_scaled_bytes, configured=block)
    for find in (find_bitsandbytes, find_mxfp4_blocks, find_fp4, find_scaled, find_unread, find_stray_scales):
        _replace(combined, list(find(combined)))
    if any(tensor.quantised for tensor in combined.values()):
        combined = {name: tensor for name, tensor in combined.items() if name.rpartition(".")[2] != _MARKER}
    return dict(sorted(combined.items()))


def _replace(tensors: dict[str, StoredTensor], weights: list[QuantisedWeight]) -> None:
    for weight in weights:
        for member in weight.members:
            tensors.pop(member, None)
        tensors[weight.name] = weight.tensor


def check_dequantised(path: Path, tensors: Tensors) -> None:
    """Check that every quantised weight of a checkpoint can be read: the others alone are not the model."""
    refused = [tensor for tensor in tensors.values() if tensor.refusal]
    if not refused:
        return
    first = refused[0]
    weights = "1 quantised weight" if len(refused) == 1 else f"{len(refused)} quantised weights"
    how = next((how for storage, how in _DEQUANTISED_BY.items() if first.dtype.startswith(storage)), _OTHERWISE)
    raise ValueError(
        f"{str(path)!r} has {weights} that cannot be dequantised, as {first.key!r}, stored as {first.dtype}: "
        f"{first.refusal}. The other weights alone are not the model; give a dequantised copy of it: {how}"
    )
