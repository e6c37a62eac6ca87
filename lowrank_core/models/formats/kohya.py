"""kohya's adapters: one safetensors file, with lora_down, lora_up and alpha for each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_core import scaling_rule
from lowrank_core.models.files.tensors import StoredTensor, as_matrix, read_tensors
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, OtherTensor, both_factors, count_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_DOWN, _UP, _MID, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha"
_OTHER_KINDS = ("hada_", "lokr_", "oft_", "glora_", "a1.", "a2.", "b1.", "b2.")
_MEANINGS = {
    "dora_scale": "DoRA magnitudes, which rescale each row of base plus update; the figures are of γBA alone",
    "diff": "a full difference, with no factors",
    "diff_b": "a full difference of the bias",
}


def is_kohya(keys: Iterable[str]) -> bool:
    """
    Recognise kohya's format by the names of its tensors.

    Parameters
    ----------
    keys : iterable of str
        The names of all tensors in a file.

    Returns
    -------
    bool
        Whether one of them is a lora_down or lora_up.
    """
    return any(key.endswith((_DOWN, _UP)) for key in keys)


def other_kind(keys: Iterable[str]) -> str | None:
    """
    Find a tensor of the LyCORIS family that is no LoRA factor: LoHa, LoKr, OFT, GLoRA.

    Parameters
    ----------
    keys : iterable of str
        The names of all tensors in a file.

    Returns
    -------
    str or None
        The first such name in alphabetical order.
    """
    return min((key for key in keys if key.partition(".")[2].startswith(_OTHER_KINDS)), default=None)


def open_kohya(path: Path, tensors: Mapping[str, StoredTensor]) -> Adapter:
    """
    Read what a kohya file holds: its alphas, but no factor yet.

    Parameters
    ----------
    path : Path
        The file.
    tensors : mapping of str to StoredTensor
        Its tensors by name.

    Returns
    -------
    Adapter
        Its layers, each scaled by α/r; a missing or zero α stands for r.

    Raises
    ------
    ValueError
        If a factor is without its partner, ranks disagree, or an alpha is not a positive number.
    """
    modules: dict[str, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        part = next((part for part in (_DOWN, _UP, _MID, _ALPHA) if key.endswith(part)), None)
        if part:
            modules.setdefault(key.removesuffix(part), {})[part] = tensor
        else:
            rest[key] = tensor
    unsupported = _unsupported(modules, rest)
    plain = {module: found for module, found in sorted(modules.items()) if module not in unsupported}
    alphas = _read_alphas(plain)
    return Adapter(
        path=path,
        kind="kohya",
        layers=tuple(_layer(module, found, alphas.get(module)) for module, found in plain.items()),
        unsupported=unsupported,
        others=tuple(
            OtherTensor(tensor, key, _MEANINGS.get(key.partition(".")[2], "unknown to LoRA"))
            for key, tensor in rest.items()
            if key.partition(".")[0] not in unsupported
        ),
    )


def _unsupported(modules: Mapping[str, Mapping[str, StoredTensor]], rest: Iterable[str]) -> dict[str, str]:
    reasons = {
        module: "has a lora_mid: a Tucker decomposition, whose update is no product of two matrices"
        for module, found in sorted(modules.items())
        if _MID in found
    }
    for key in rest:
        module, _, part = key.partition(".")
        if part.startswith(_OTHER_KINDS):
            reasons.setdefault(
                module, f"is of another kind than LoRA ({part}): its update is no product of two factors"
            )
    return reasons


def _layer(module: str, found: Mapping[str, StoredTensor], stored_alpha: float | None) -> AdapterLayer:
    factors = {part.split(".")[1]: tensor for part, tensor in found.items()}
    A, B = both_factors(module, factors, ("lora_down", "lora_up"))
    count_groups(module, A, B)
    rank = A.shape[0]
    alpha = stored_alpha or float(rank)
    if stored_alpha:
        source = f"alpha {alpha:g} (.alpha) / rank {rank} (lora_down)"
    else:
        given = "no alpha in the file" if stored_alpha is None else "alpha 0 in the file"
        source = f"{given}, which stands for the rank {rank} (lora_down): scale 1"
    try:
        scaling = float(scaling_rule("standard")(alpha, rank))
    except ValueError as error:
        raise ValueError(f"{module!r} has alpha {alpha:g}: {error}") from error
    return AdapterLayer(
        name=module,
        shape=(B.shape[0], as_matrix(A.shape)[1]),
        rank=rank,
        alpha=alpha,
        rule="standard",
        scaling=scaling,
        scaling_source=source,
        A=A,
        B=B,
    )


def _read_alphas(modules: Mapping[str, Mapping[str, StoredTensor]]) -> dict[str, float]:
    stored = {module: found[_ALPHA] for module, found in modules.items() if _ALPHA in found}
    for tensor in stored.values():
        if tensor.size != 1:
            raise ValueError(f"{tensor.key!r} has shape {tensor.shape}, but alpha is one number")
    alphas = read_tensors(stored.values())
    return {module: float(alpha.reshape(())) for module, alpha in zip(stored, alphas, strict=True)}
