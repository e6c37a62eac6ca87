"""Where a layer's factors go in an adapter's file: keys, shapes and orientation, PEFT's and kohya's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from lowrank_core import LowRankUpdate
    from lowrank_core.models.formats.adapter import AdapterLayer

PEFT_PREFIX = "base_model.model."
KOHYA_PREFIXES = ("lora_unet", "lora_te1", "lora_te2", "lora_te")
DEFAULT_KOHYA_PREFIX = KOHYA_PREFIXES[0]

_FACTOR_ENDINGS = (".lora_A.weight", ".lora_embedding_A", ".lora_down.weight")


@dataclass(frozen=True, slots=True)
class Placement:
    """
    How the factors of one layer are stored.

    Attributes
    ----------
    name : str
        The layer's name in reports.
    module : str
        What PEFT matches targets and patterns against: the module's name in the base model.
    A_key, B_key : str
        The factors' names in the file.
    alpha_key : str or None
        Where a kohya file holds this layer's alpha.
    kernel : tuple of int
        What follows the rank in the shape of A: (in,), or (in, kh, kw) for a convolution.
    transposed : bool
        Whether the update that is given is that of a weight for which it is (B A)ᵀ: an embedding's, or one stored as
        (in, out).
    embedding : bool
        Whether it is an embedding.
    """

    name: str
    module: str
    A_key: str
    B_key: str
    alpha_key: str | None
    kernel: tuple[int, ...]
    transposed: bool = False
    embedding: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All names that the layer takes in the file."""
        return (self.A_key, self.B_key) if self.alpha_key is None else (self.A_key, self.B_key, self.alpha_key)

    def arrange(self, update: LowRankUpdate) -> tuple[NDArray[Any], NDArray[Any]]:
        """
        Shape the factors as the file holds them.

        Parameters
        ----------
        update : LowRankUpdate
            In the orientation that `transposed` says.

        Returns
        -------
        A, B : ndarray
            (r, in[, kh, kw]) and (out, r[, 1, 1]).
        """
        A, B = (update.B.T, update.A.T) if self.transposed else (update.A, update.B)
        return A.reshape(A.shape[0], *self.kernel), B.reshape(*B.shape, *(1 for _ in self.kernel[1:]))


def peft_placement(name: str, kernel: Sequence[int], *, transposed: bool = False, embedding: bool = False) -> Placement:
    """
    Place a layer in a PEFT adapter.

    Parameters
    ----------
    name : str
        The module's name in the base model.
    kernel : sequence of int
        What follows the rank in the shape of A.
    transposed, embedding : bool
        As in :class:`Placement`; an embedding is transposed whatever is given.

    Returns
    -------
    Placement
    """
    A, B = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    key = f"{PEFT_PREFIX}{name}"
    return Placement(
        name, name, f"{key}.{A}", f"{key}.{B}", None, tuple(kernel), transposed or embedding, embedding=embedding
    )


def kohya_placement(key: str, kernel: Sequence[int], name: str, *, transposed: bool = False) -> Placement:
    """
    Place a layer in a kohya file.

    Parameters
    ----------
    key : str
        What its three tensors begin with, as "lora_unet_mid_block_proj".
    kernel : sequence of int
        What follows the rank in the shape of lora_down.
    name : str
        The layer's name in reports.
    transposed : bool
        As in :class:`Placement`.

    Returns
    -------
    Placement
    """
    down, up, alpha = f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"
    return Placement(name, key, down, up, alpha, tuple(kernel), transposed)


def same_placement(layer: AdapterLayer) -> Placement:
    """
    Place a layer where its adapter has it.

    Parameters
    ----------
    layer : AdapterLayer
        Of a PEFT adapter or of a kohya file.

    Returns
    -------
    Placement
        With the keys that the layer was read from, for factors in their own orientation.
    """
    key = module_key(layer)
    if is_kohya_layer(layer):
        return kohya_placement(key, layer.A.shape[1:], layer.name)
    embedding = is_embedding_layer(layer)
    # PEFT holds patterns against the outer module where one wraps another ("mha.base_layer.out_proj").
    module = key.removeprefix(PEFT_PREFIX).partition(".base_layer")[0]
    return Placement(layer.name, module, layer.A.key, layer.B.key, None, layer.A.shape[1:], embedding=embedding)


def is_embedding_layer(layer: AdapterLayer) -> bool:
    """
    Tell the factors of an embedding, which no other layer can be added to.

    Parameters
    ----------
    layer : AdapterLayer
        Of a PEFT adapter or of a kohya file.

    Returns
    -------
    bool
        Whether PEFT named them so.
    """
    return layer.A.key.endswith("lora_embedding_A")


def is_kohya_layer(layer: AdapterLayer) -> bool:
    """
    Tell a layer of a kohya file.

    Parameters
    ----------
    layer : AdapterLayer
        Of a PEFT adapter or of a kohya file.

    Returns
    -------
    bool
        By the names of its factors.
    """
    return layer.A.key.endswith(".lora_down.weight")


def module_key(layer: AdapterLayer) -> str:
    """
    Give what the names of all of a layer's tensors begin with.

    Parameters
    ----------
    layer : AdapterLayer
        Of a PEFT adapter or of a kohya file.

    Returns
    -------
    str
        The key of its A, without the ending.
    """
    return next(layer.A.key.removesuffix(end) for end in _FACTOR_ENDINGS if layer.A.key.endswith(end))


def kohya_key(prefix: str, module: str) -> str:
    """
    Write a module's name as kohya does.

    Parameters
    ----------
    prefix : str
        As "lora_unet".
    module : str
        The name in the base model.

    Returns
    -------
    str
        Dots as underscores, which cannot be undone.
    """
    return f"{prefix}_{module}".replace(".", "_")


def check_distinct(placements: Iterable[Placement]) -> None:
    """
    Refuse layers that would take one name in the file.

    Parameters
    ----------
    placements : iterable of Placement
        All layers of one file.

    Raises
    ------
    ValueError
        If two have a key in common.
    """
    taken: dict[str, str] = {}
    for placement in placements:
        other = taken.setdefault(placement.A_key, placement.name)
        if other != placement.name:
            raise ValueError(
                f"{other!r} and {placement.name!r} would have one name in the file, {placement.A_key!r}: kohya's "
                "format writes dots as underscores. Leave one of them out, or write PEFT's"
            )


def names_in_base(keys: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """
    Find which modules of a base model kohya's names stand for.

    Parameters
    ----------
    keys : iterable of str
        Names as a kohya file has them, prefix included.
    modules : iterable of str
        The names of all modules of the base model.

    Returns
    -------
    dict of str to str
        The module of each key.

    Raises
    ------
    ValueError
        If a key stands for no module, or for several.
    """
    meant: dict[str, list[str]] = {}
    for module in sorted(set(modules)):
        meant.setdefault(module.replace(".", "_"), []).append(module)
    found = {}
    for key in keys:
        candidates = meant.get(without_prefix(key), [])
        if len(candidates) != 1:
            stands = f"for each of {', '.join(candidates)}" if candidates else "for no module of the base"
            raise ValueError(
                f"kohya's name {key!r} stands {stands}: underscores in a module's own name cannot be told from dots. "
                "Give the base model that these layers belong to, leave the layer out, or write a kohya file "
                "(a name that ends in .safetensors)"
            )
        found[key] = candidates[0]
    if len(set(found.values())) < len(found):
        raise ValueError("several kohya names stand for one module: layers of one part of the model are needed")
    return found


def without_prefix(key: str) -> str:
    """
    Leave out what kohya's names begin with.

    Parameters
    ----------
    key : str
        A name as a kohya file has it.

    Returns
    -------
    str
        The module's own name, dots as underscores.
    """
    prefix = next((prefix for prefix in KOHYA_PREFIXES if key.startswith(f"{prefix}_")), None)
    return key if prefix is None else key[len(prefix) + 1 :]


def kernel_in_base(layer: AdapterLayer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """
    Give a layer's kernel as the base model's weight has it: kohya stores some 1 × 1 convolutions as matrices.

    Parameters
    ----------
    layer : AdapterLayer
        Of a kohya file.
    shape : tuple of int
        Shape of the base model's weight.

    Returns
    -------
    tuple of int
        What follows the rank in the shape of PEFT's lora_A.

    Raises
    ------
    ValueError
        If the layer's update has another shape than the weight.
    """
    m, n = layer.shape
    if (m, n) != (shape[0], math.prod(shape[1:])):
        raise ValueError(f"{layer.name!r} is an update of {m} × {n}, but the base's weight has shape {shape}")
    return shape[1:]


def pad_rank(A: NDArray[Any], B: NDArray[Any], rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """
    Pad factors with zeros to a larger rank, which leaves their product as it is.

    Parameters
    ----------
    A, B : ndarray
        (r, ...) and (out, r[, 1, 1]), as stored.
    rank : int
        At least r.

    Returns
    -------
    A, B : ndarray
        (rank, ...) and (out, rank[, 1, 1]).
    """
    more = rank - A.shape[0]
    A_widths = [(0, more)] + [(0, 0)] * (A.ndim - 1)
    B_widths = [(0, 0), (0, more)] + [(0, 0)] * (B.ndim - 2)
    return np.pad(A, A_widths), np.pad(B, B_widths)
