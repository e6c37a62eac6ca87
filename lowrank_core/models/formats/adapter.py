"""What an adapter is made of, whatever its format: layers with their factors and scales, and all other tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_core import LowRankUpdate
from lowrank_core.models.files.blocks import frobenius_norm
from lowrank_core.models.files.tensors import PLAIN_WEIGHTS, StoredTensor, describe, describe_shape, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# A few thousand times what is in the file, for a file that was made to exhaust memory; no convolution comes near it.
_SPREAD_LIMIT = 1 << 27


@dataclass(frozen=True)
class AdapterLayer:
    """
    One layer of an adapter: its factors on disk, and the scale that they are multiplied with.

    A plain value that can be sent to another process; nothing is read before :meth:`update` is called.

    Attributes
    ----------
    name : str
        The module's name, as the base model has it (PEFT) or as the file has it (kohya).
    shape : tuple of int
        Shape (m, n) of the update as a matrix, in the orientation of the weight that it is added to;
        a convolution's is (out, in·kh·kw).
    rank : int
        Number of rows of A.
    alpha : float
        The alpha that applies to this layer.
    rule : str
        The scaling rule, "standard" (α/r) or "rslora" (α/√r).
    scaling : float
        The effective scale γ.
    scaling_source : str
        Where γ came from, in plain words.
    A, B : StoredTensor
        The factors.
    transposed : bool
        Whether the update is (B A)ᵀ: an embedding's, or a weight stored as (in, out).
    groups : int
        Groups of a grouped convolution, whose B holds the blocks of a block-diagonal matrix.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    alpha: float
    rule: str
    scaling: float
    scaling_source: str
    A: StoredTensor
    B: StoredTensor
    transposed: bool = False
    groups: int = 1

    @property
    def dtype(self) -> str:
        """What the factors are stored in; both, where they differ."""
        return self.B.dtype if self.A.dtype == self.B.dtype else f"{self.B.dtype} · {self.A.dtype}"

    @property
    def parameters(self) -> int:
        """Number of entries in the two factors, as stored."""
        return self.A.size + self.B.size

    def update(self) -> LowRankUpdate:
        """
        Read the factors.

        Returns
        -------
        LowRankUpdate
            The factors in their stored dtype and the scale: ``scaling · B @ A`` is the update, in the orientation of
            the weight that it is added to.

        Raises
        ------
        ValueError
            If a factor holds NaN or infinity, or the file cannot be read.
        """
        A, B = read_tensors([self.A, self.B])
        for tensor, factor in ((self.A, A), (self.B, B)):
            bad = factor.size - int(np.count_nonzero(np.isfinite(factor)))
            if bad:
                raise ValueError(f"{tensor.key!r} holds NaN or infinity in {bad} of its {factor.size} entries")
        A, B = A.reshape(self.rank, -1), _spread_groups(B.reshape(B.shape[0], -1), self.groups)
        if self.transposed:
            A, B = B.T, A.T
        return LowRankUpdate(B, A, scaling=self.scaling)


@dataclass(frozen=True)
class Adapter:
    """
    A LoRA adapter on disk: its layers, and all that it holds besides.

    Attributes
    ----------
    path : Path
        The safetensors file.
    kind : str
        "peft" or "kohya".
    layers : tuple of AdapterLayer
        The low-rank updates, in alphabetical order.
    unsupported : dict of str to str
        Modules that the adapter changes in a way that is no product γBA: name, and why.
    others : tuple of OtherTensor
        Tensors that no low-rank update carries.
    warnings : tuple of str
        What a user of this adapter should know: an altered base, readers that would apply a different scale.
    initialisation : str or None
        The PEFT initialisation that altered the base, as "pissa": the factors alone are then not the whole update.
        None where the base is as it was.
    doubts : tuple of str
        Of the warnings, those that put the update itself in doubt, and that whatever is made from it inherits.
    """

    path: Path
    kind: str
    layers: tuple[AdapterLayer, ...]
    unsupported: dict[str, str] = field(default_factory=dict)
    others: tuple[OtherTensor, ...] = ()
    warnings: tuple[str, ...] = ()
    initialisation: str | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class OtherTensor:
    """
    A tensor in an adapter that no low-rank update carries.

    Attributes
    ----------
    tensor : StoredTensor
        Where it is.
    name : str
        Its name, as the base model has it.
    meaning : str
        What it is, in plain words.
    scaling : float
        What it is multiplied with.
    """

    tensor: StoredTensor
    name: str
    meaning: str
    scaling: float = 1.0

    def describe(self) -> str:
        """
        Read the tensor and describe it.

        Returns
        -------
        str
            Its meaning, shape, dtype and norm.
        """
        if self.scaling == 1.0 or not self.tensor.is_floating:
            return f"{self.meaning}: {describe(self.tensor)}"
        norm = abs(self.scaling) * frobenius_norm(self.tensor.read())
        return f"{self.meaning}: {describe_shape(self.tensor.shape)}, {self.tensor.dtype}, norm {norm:.4g}"


def both_factors(
    module: str, found: Mapping[str, StoredTensor], names: tuple[str, str]
) -> tuple[StoredTensor, StoredTensor]:
    """
    Take the two factors of a module, and check that each can be one.

    Parameters
    ----------
    module : str
        The module's name, for messages.
    found : mapping of str to StoredTensor
        Its factors by name.
    names : tuple of str
        What the format calls A and B.

    Returns
    -------
    A, B : StoredTensor
        The factors.

    Raises
    ------
    ValueError
        If one is missing, empty, no matrix, or of a type that holds no plain weights.
    """
    for name, partner in (names, names[::-1]):
        if name not in found:
            has = f"has {partner} but no {name}" if partner in found else f"has neither {partner} nor {name}"
            raise ValueError(
                f"{module!r} {has}: half of a product is no update; the file is incomplete, save the adapter again"
            )
    A, B = found[names[0]], found[names[1]]
    for factor in (A, B):
        if not factor.is_floating:
            raise ValueError(f"{factor.key!r} is stored as {factor.dtype}: {PLAIN_WEIGHTS}")
        if len(factor.shape) < 2 or not factor.size:
            raise ValueError(
                f"{factor.key!r} has shape {factor.shape}, but a factor is a matrix: shards of DeepSpeed ZeRO-3 or "
                "FSDP that were not gathered before saving look so; gather them and save the adapter again"
            )
    if math.prod(B.shape[2:]) != 1:
        raise ValueError(f"{B.key!r} has shape {B.shape}, but B is a matrix, or a convolution of kernel size 1")
    return A, B


def count_groups(module: str, A: StoredTensor, B: StoredTensor, rank: int | None = None) -> int:
    """
    Check that two factors have one rank, and give the number of groups of a grouped convolution.

    Parameters
    ----------
    module : str
        The module's name, for messages.
    A, B : StoredTensor
        The factors. B of a convolution in g groups has rank / g columns.
    rank : int, optional
        The rank that the configuration gives: it tells a grouped convolution from a mistake. None: no groups.

    Returns
    -------
    int
        1 where nothing is grouped.

    Raises
    ------
    ValueError
        If the ranks disagree.
    """
    rows, columns = A.shape[0], B.shape[1]
    groups = rows // columns
    if rows == columns:
        return 1
    if len(A.shape) > 2 and rows == rank and rows == groups * columns and B.shape[0] % groups == 0:
        return groups
    raise ValueError(
        f"the factors of {module!r} disagree: A is {describe_shape(A.shape)}, so its rank is {rows}, but B is "
        f"{describe_shape(B.shape)}, so its rank is {columns}"
    )


def _spread_groups(B: NDArray[Any], groups: int) -> NDArray[Any]:
    if groups == 1:
        return B
    rows, columns = B.shape[0] // groups, B.shape[1]
    if B.size * groups > _SPREAD_LIMIT:
        raise ValueError(
            f"B of {describe_shape(B.shape)} in {groups} groups spreads to {B.size * groups:,} entries, beyond the "
            f"{_SPREAD_LIMIT:,} that are read"
        )
    spread = np.zeros((B.shape[0], columns * groups), B.dtype)
    for group in range(groups):
        block = slice(group * rows, (group + 1) * rows)
        spread[block, group * columns : (group + 1) * columns] = B[block]
    return spread
