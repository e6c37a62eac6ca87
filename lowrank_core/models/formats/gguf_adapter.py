"""llama.cpp's format: a GGUF file with lora_a and lora_b of each weight, and one alpha for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from lowrank_core import LowRankUpdate
from lowrank_core.models.files.gguf_stream import stream_gguf
from lowrank_core.models.files.tensors import StoredTensor, describe_shape
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    OtherTensor,
    Placement,
    by_module,
    factor_pair,
    product,
    read_layers,
)
from lowrank_core.models.formats.experts import expert_layers
from lowrank_core.models.formats.format import (
    AdapterFile,
    Documented,
    Format,
    Headers,
    Kept,
    StoredScale,
    applied_scale,
)

_A, _B = ".weight.lora_a", ".weight.lora_b"
_ARCHITECTURE, _TYPE, _ADAPTER_TYPE, _ALPHA = (
    *("general.architecture", "general.type"),
    *("adapter.type", "adapter.lora.alpha"),
)
_EMBEDDING = "token_embd"
# src/llama-adapter.cpp passes over these, and refuses every other tensor.
_PASSED_OVER = "_norm.weight"


def _recognises(file: AdapterFile) -> bool:
    return _ARCHITECTURE in file.metadata and any(key.endswith((_A, _B)) for key in file.tensors)


def _read(file: AdapterFile) -> Adapter:
    given = file.metadata.get(_TYPE), file.metadata.get(_ADAPTER_TYPE)
    if given != ("adapter", "lora"):
        raise ValueError(
            f"{str(file.path)!r} has {_TYPE} {given[0]!r} and {_ADAPTER_TYPE} {given[1]!r}, but llama.cpp reads "
            "adapters of type 'adapter' and 'lora' alone"
        )
    alpha = _alpha(file)
    modules, rest = by_module(file.tensors, (_A, _B))
    read, failures = read_layers(modules, lambda module, tensors: _layers(module, tensors, alpha))
    layers = [layer for of_module in read for layer in of_module]
    passed_over = [key for key in rest if key.endswith(_PASSED_OVER)]
    return Adapter(
        path=file.path,
        format=GGUF_ADAPTER.name,
        layers=tuple(layers),
        unsupported=failures,
        others=tuple(
            OtherTensor(rest.pop(key), key, "weight of a norm, which llama.cpp ignores") for key in passed_over
        ),
        unread=rest,
        metadata=file.metadata,
    )


def _alpha(file: AdapterFile) -> float:
    text = file.metadata.get(_ALPHA, "0")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise ValueError(f"{str(file.path)!r} has {_ALPHA} {text!r}: alpha is a finite number")
    return alpha


def _layers(module: str, tensors: Mapping[str, StoredTensor], alpha: float) -> list[AdapterLayer]:
    """Return the layer of a weight, or one for each of the experts in it."""
    a, b = factor_pair(module, tensors, (_A, _B))
    embedding, has_experts = module == _EMBEDDING, len(b.shape) == 3
    rank, out = b.shape[-1], b.shape[-2]
    inputs = a.shape[0] if embedding else a.shape[-1]
    expected = (inputs, rank) if embedding else (*b.shape[:-2], rank, inputs)
    if a.shape != expected or len(b.shape) > 3:
        raise ValueError(
            f"the factors of {module!r} disagree: lora_a is {describe_shape(a.shape)}, and lora_b "
            f"{describe_shape(b.shape)}"
        )
    layer = AdapterLayer(
        placement=Placement(GGUF_ADAPTER.name, module, module, (a.key, b.key), (out, inputs), embedding),
        rank=rank,
        alpha=alpha or float(rank),
        rule="standard",
        scaling=applied_scale(alpha, "standard", rank) if alpha else 1.0,
        scaling_source=f"alpha {alpha:g} ({_ALPHA}) / rank {rank} (lora_b)" if alpha else f"{_ALPHA} 0: scale 1",
        tensors=(b, a),
        build=_embedding_product if embedding else _expert_product if has_experts else product,
        transposed=embedding,
    )
    if not has_experts:
        return [layer]
    return expert_layers(
        layer, b.shape[0], lambda expert: (b.along(0, expert, expert + 1), a.along(0, expert, expert + 1))
    )


def _embedding_product(b: NDArray[Any], a: NDArray[Any], scaling: float) -> LowRankUpdate:
    return LowRankUpdate(b, a.T, scaling)


def _expert_product(b: NDArray[Any], a: NDArray[Any], scaling: float) -> LowRankUpdate:
    return LowRankUpdate(b[0], a[0], scaling)


def _arrange(update: LowRankUpdate, placement: Placement, _alpha: float) -> list[NDArray[Any]]:
    return [update.A.T if placement.embedding else update.A, update.B]


def _scale(alpha: float, _rule: str, rank: int, _dtype: object) -> StoredScale:
    """Return α/r: llama.cpp knows no other rule."""
    return StoredScale(rank, alpha, applied_scale(alpha, "standard", rank))


def _has_experts(placements: Iterable[Placement]) -> bool:
    # The rank of each is known only once all are, and with it what one alpha for all layers would scale them by.
    return any(placement.experts for placement in placements)


def _headers(stored: Mapping[Placement, StoredScale], _rule: str, _kept: Kept) -> Headers:
    """Return the one alpha of all layers; 0 where each has a scale of 1, whatever its rank."""
    alphas = {scale.alpha for scale in stored.values()}
    if len(alphas) > 1 and any(scale.scaling != 1.0 for scale in stored.values()):
        raise ValueError("llama.cpp's format has one alpha for all layers: give one (--alpha), or pad them (--uniform)")
    alpha = alphas.pop() if len(alphas) == 1 else 0.0
    return Headers(metadata={_TYPE: "adapter", _ADAPTER_TYPE: "lora", _ALPHA: repr(float(alpha))})


GGUF_ADAPTER = Format(
    name="gguf",
    title="llama.cpp's format",
    factors="llama.cpp's lora_a and lora_b",
    documented=Documented(
        writers="llama.cpp's convert_lora_to_gguf.py",
        layout="a GGUF file of `general.type` adapter and `adapter.type` lora: `<weight>.lora_a` (r, in) and `.lora_b` "
        "(out, r), with an axis of experts before them where the weight has one; that of token_embd is (vocabulary, r)",
        scale="adapter.lora.alpha over each tensor's own rank; 1 where alpha is 0 or missing",
        source="llama.cpp, `src/llama-adapter.h`, `get_scale`",
    ),
    recognises=_recognises,
    read=_read,
    suffix=".gguf",
    embeddings=True,
    one_rank=_has_experts,
    arrange=_arrange,
    rules=("standard",),
    scale=_scale,
    headers=_headers,
    stream=stream_gguf,
)
