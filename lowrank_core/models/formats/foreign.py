"""Layouts that have no figures to report, by the names of their tensors: what they are, and what to do with them."""

from __future__ import annotations

from collections.abc import Iterable

_TORCHTUNE = (
    "has torchtune's own names: alpha is not in such a file, so that the scale of the update is unknown. Save the "
    "adapter with torchtune's checkpointer for Hugging Face models, which writes PEFT's files, or convert it with "
    "torchtune.models.convert_weights.tune_to_peft_adapter_weights"
)
_MEGATRON = (
    "has the names of Megatron-Bridge or NeMo: fused projections of their own, and no alpha. Export the adapter there "
    "to Hugging Face's layout (AutoBridge.export_adapter_ckpt), which is PEFT's"
)
_PROMPTS = "has soft prompts: vectors that are put before the input, and no update of a weight"
_BOTTLENECKS = (
    "has AdapterHub's bottleneck adapters: layers with an activation between their matrices, which are not an update "
    "of a weight"
)
_REASONS = (
    ((".lora_a.weight", ".lora_b.weight"), _TORCHTUNE),
    ((".linear_in.weight", ".linear_out.weight"), _MEGATRON),
    (("prompt_embeddings", "prefix_embeddings", "prompt_encoder.embedding.weight"), _PROMPTS),
    ((".adapter_down.0.weight", ".adapter_up.weight"), _BOTTLENECKS),
)


def foreign_layout(names: Iterable[str]) -> str:
    """Return what a file has whose tensors have such names, and what to do; empty where they are of no known layout."""
    return next((reason for name in names for ends, reason in _REASONS if name.endswith(ends)), "")
