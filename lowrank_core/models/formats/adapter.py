"""What an adapter is made of, whatever its format: layers with their updates and scales, and all other tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from lowrank_core import KroneckerUpdate, LowRankUpdate
from lowrank_core.models.files.tensors import (
    PLAIN_WEIGHTS,
    StoredTensor,
    as_matrix,
    describe,
    describe_shape,
    read_tensors,
)
from lowrank_core.models.formats.base_updates import WITH_MAGNITUDES
from lowrank_core.models.norms import Update, check_finite, one_blas_thread
from lowrank_core.models.pairing.changes import OtherChange

# A few thousand times what is in the file, for a file that was made to exhaust memory; no convolution comes near it.
_SPREAD_LIMIT = 1 << 27
_GROUPED = "a grouped convolution, whose truncation is not one: leave it out, or keep the adapter as it is"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a format stores one layer.

    `name` is the layer's in reports, and `module` the name that the file's configuration matches. `keys` are the names
    of its tensors in the file, in the order of the format's ``arrange``. `dims` are (out, in), or (out, in, kh, kw) of
    a convolution: those of the module as a map, whichever way its weight is stored. `unscaled` says that the file has
    no scale for it, so that its readers take 1. `expert` is which of several `experts` a layer is whose factors are
    stacked in the same tensors, and `flat` says that the first has no axis of experts there.
    """

    format: str
    name: str
    module: str
    keys: tuple[str, ...]
    dims: tuple[int, ...]
    embedding: bool = False
    unscaled: bool = False
    expert: int = 0
    experts: int = 0
    flat: bool = False

    @property
    def where(self) -> tuple[str, int]:
        """The name of its first tensor, and which of the experts in it the layer is."""
        return self.keys[0], self.expert


def product(B: NDArray[Any], A: NDArray[Any], scaling: float) -> LowRankUpdate:
    """Return γBA of two factors as stored; those of a convolution as matrices."""
    return LowRankUpdate(B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1), scaling)


@overload
def transposed(update: LowRankUpdate) -> LowRankUpdate: ...
@overload
def transposed(update: Update) -> Update: ...
def transposed(update: Update) -> Update:
    """Return the transpose of an update."""
    if isinstance(update, LowRankUpdate):
        return LowRankUpdate(update.A.T, update.B.T, update.scaling)
    if isinstance(update, KroneckerUpdate):
        left, right = (transposed(side) for side in (update.left, update.right))
        return KroneckerUpdate(left, right, update.scaling)
    return update.T


@dataclass(frozen=True)
class GroupedProduct:
    """The product of a convolution in groups, whose B consists of the blocks of a block-diagonal matrix."""

    groups: int

    def __call__(self, B: NDArray[Any], A: NDArray[Any], scaling: float) -> LowRankUpdate:
        """Return γBA with B as the block-diagonal matrix."""
        if B.size * self.groups > _SPREAD_LIMIT:
            raise ValueError(
                f"B of {describe_shape(B.shape[:2])} in {self.groups} groups spreads to {B.size * self.groups:,} "
                f"entries, beyond the {_SPREAD_LIMIT:,} that are read"
            )
        rows, columns = B.shape[0] // self.groups, B.shape[1]
        spread = np.zeros((B.shape[0], columns * self.groups), B.dtype)
        for group in range(self.groups):
            block = slice(group * rows, (group + 1) * rows)
            spread[block, group * columns : (group + 1) * columns] = B[block].reshape(rows, columns)
        return product(spread, A, scaling)


@dataclass(frozen=True)
class AdapterLayer:
    """One layer of an adapter: its tensors on disk, how its update is made from them, and its scale.

    A plain value that can be sent to another process; nothing is read before :meth:`update` is called.

    Attributes
    ----------
    placement : Placement
        Its name, the names of its tensors, and the shape of its module.
    rank : int
        Rank of the stored factors, or the most that the rank of the update can be.
    alpha : float
        The alpha that applies to this layer.
    rule : str
        The scaling rule, "standard" (α/r) or "rslora" (α/√r).
    scaling, scaling_source : float, str
        The effective scale γ, and where it came from, in plain words.
    tensors : tuple of StoredTensor
        What the update is made from: B and A, as in the product γBA.
    build : callable
        ``build(*arrays, scaling)`` makes the update, (out, in), from the content of `tensors`.
    transposed : bool
        Whether the weight is stored as (in, out), as an embedding's is, so that its update is the transpose.
    fixed : str
        Why no truncation of the update can be stored in its place; empty where one can.
    base : StoredTensor or None
        The base model's weight, which `build` takes first as a map, (out, in[, kh, kw]); None where the update does not
        depend on it.
    weight : StoredTensor or None
        The base model's weight that the update is added to, where an adapter was opened beside its base, and that has
        one of the layer's name.
    """

    placement: Placement
    rank: int
    alpha: float
    rule: str
    scaling: float
    scaling_source: str
    tensors: tuple[StoredTensor, ...]
    build: Callable[..., Update] = product
    transposed: bool = False
    fixed: str = ""
    base: StoredTensor | None = None
    weight: StoredTensor | None = None

    @property
    def name(self) -> str:
        """The module's name in the base model, or in the file where only that is known."""
        return self.placement.name

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the update as a matrix, oriented as the weight is; a convolution's is (out, in·kh·kw)."""
        m, n = as_matrix(self.placement.dims)
        return (n, m) if self.transposed else (m, n)

    @property
    def dtype(self) -> str:
        """What the tensors are stored in; all of them, where they differ."""
        return " · ".join(dict.fromkeys(tensor.dtype for tensor in self.tensors))

    @property
    def parameters(self) -> int:
        """Number of entries of the tensors, as stored."""
        return sum(tensor.size for tensor in self.tensors)

    def untransposed_update(self) -> Update:
        """Read the update of the module as a map, (out, in), whichever way its weight is stored.

        Where linear layers and Conv1D are mixed, or adapters disagree, only this orientation can be relied on: PEFT's
        configuration has one fan_in_fan_out for all layers, that of whichever was adapted last.
        """
        tensors = self.tensors if self.base is None else (self.base, *self.tensors)
        arrays = read_tensors(tensors)
        for tensor, array in zip(tensors, arrays, strict=True):
            check_finite(repr(tensor.key), array)
        if self.base is not None and self.transposed:
            arrays[0] = arrays[0].T
        with one_blas_thread():
            return self.build(*arrays, self.scaling)

    def update(self) -> Update:
        """Read the update, oriented as the weight that it is added to: the factors as stored, and the scale.

        Raises
        ------
        ValueError
            If a tensor contains NaN or infinity, or the file cannot be read.
        """
        update = self.untransposed_update()
        return transposed(update) if self.transposed else update


class BaseUpdate(NamedTuple):
    """An update that the base model's weight decides: the layer, which has no base yet, and why, in plain words."""

    layer: AdapterLayer
    reason: str


@dataclass(frozen=True)
class OtherTensor:
    """A tensor of an adapter that is not part of a low-rank update.

    Attributes
    ----------
    tensor : StoredTensor
        Where it is.
    name, meaning : str
        Its name, as the base model has it, and what it is, in plain words.
    scaling : float or None
        The scale of its layer that it is multiplied with; None where it is applied as it is.
    follows : str
        The layer without which it has no meaning; empty where there is none.
    magnitudes : bool
        Whether it is DoRA's, so that the update of its layer is not γBA.
    replaces, rows : bool, tuple of int
        Whether it takes the place of the base's tensor of its name; of these rows, or of all.
    """

    tensor: StoredTensor
    name: str
    meaning: str
    scaling: float | None = None
    follows: str = ""
    magnitudes: bool = False
    replaces: bool = False
    rows: tuple[int, ...] = ()

    def describe(self) -> str:
        """Read the tensor and return its meaning, shape, dtype and norm."""
        return f"{self.meaning}: {describe(self.tensor, 1.0 if self.scaling is None else self.scaling)}"


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk or in memory: its layers, and all its other tensors.

    Attributes
    ----------
    path, format : Path, str
        The file, or what an adapter in memory is called; and the name of its format, as "peft".
    layers : tuple of AdapterLayer
        The low-rank updates, in alphabetical order.
    unsupported : dict of str to str
        Modules that the adapter changes in a way that is not a product γBA: name, and why.
    base_updates : tuple of BaseUpdate
        Those of the unsupported modules whose update is known once the base model is given.
    others : tuple of OtherTensor
        All tensors that are not part of a low-rank update.
    unread : dict of str to StoredTensor
        Tensors that this format does not know, by their names in the file; empty once every format was asked.
    warnings : tuple of str
        What a user of this adapter should know: an altered base, readers that would apply a different scale.
    inherited_warnings : tuple of str
        Of the warnings, those that put the update itself in doubt, and that apply to whatever is made from it.
    initialisation : str or None
        The initialisation that altered the base, as "pissa": the factors alone are then not the whole update.
        None where the base is as it was.
    settings : dict
        The configuration as it was read, in PEFT's terms; empty where the format has none.
    metadata : dict of str to str
        The file's remarks about itself.
    tensors : dict of str to StoredTensor
        Every tensor, by its name in the file.
    """

    path: Path
    format: str
    layers: tuple[AdapterLayer, ...] = field(repr=False)
    unsupported: dict[str, str] = field(default_factory=dict)
    base_updates: tuple[BaseUpdate, ...] = field(default=(), repr=False)
    others: tuple[OtherTensor, ...] = field(default=(), repr=False)
    unread: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    inherited_warnings: tuple[str, ...] = ()
    initialisation: str | None = None
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Read every tensor, and return copies by the names in the file, as programs of its format load them.

        Returns
        -------
        dict of str to ndarray
            In the stored dtype; that of ml_dtypes for bfloat16 and float8. ``torch.from_numpy`` takes all others.

        Examples
        --------
        >>> import numpy as np
        >>> from lowrank_core.models import extract
        >>> report = extract({"proj.weight": np.zeros((2, 2))}, {"proj.weight": np.diag([4.0, 3.0])}, rank=1)
        >>> {name: array.shape for name, array in report.adapter.state_dict().items()}
        {'base_model.model.proj.lora_A.weight': (1, 2), 'base_model.model.proj.lora_B.weight': (2, 1)}
        """
        return dict(zip(self.tensors, read_tensors(self.tensors.values()), strict=True))

    @property
    def incomplete(self) -> dict[str, str]:
        """Modules whose update is not that of a layer, and why: those without a layer, and those with magnitudes."""
        return self.unsupported | {other.follows: WITH_MAGNITUDES for other in self.others if other.magnitudes}

    def other_changes(self) -> Iterator[tuple[str, OtherChange]]:
        """Read the other tensors, one at a time, and yield what each is, by name."""
        # Even a vector: what an adapter has beside its layers is there for its readers to apply.
        return (
            (other.name, OtherChange(other.describe(), other.tensor.size, is_vector=False)) for other in self.others
        )


def by_module(
    tensors: Mapping[str, StoredTensor], endings: Sequence[str]
) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Return the tensors whose names have one of the endings, by module and ending, and all others by name."""
    modules: dict[str, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        ending = next((ending for ending in endings if key.endswith(ending)), None)
        if ending:
            modules.setdefault(key.removesuffix(ending), {})[ending] = tensor
        else:
            rest[key] = tensor
    return modules, rest


Read = TypeVar("Read")


def read_layers(
    modules: Mapping[str, Mapping[str, StoredTensor]], read: Callable[[str, Mapping[str, StoredTensor]], Read]
) -> tuple[tuple[Read, ...], dict[str, str]]:
    """Return what is read of modules, in alphabetical order, and why others cannot be read, by module."""
    layers, failures = [], {}
    for module, tensors in sorted(modules.items()):
        try:
            layers.append(read(module, tensors))
        except ValueError as error:
            failures[module] = str(error)
    return tuple(layers), failures


def both_factors(
    module: str, tensors: Mapping[str, StoredTensor], names: tuple[str, str]
) -> tuple[StoredTensor, StoredTensor]:
    """Return A and B of a module, whose names are the format's, once each is known to be a factor of its own."""
    A, B = factor_pair(module, tensors, names)
    if math.prod(B.shape[2:]) != 1:
        raise ValueError(f"{B.key!r} has shape {B.shape}, but B is a matrix, or a convolution of kernel size 1")
    return A, B


def factor_pair(
    module: str, tensors: Mapping[str, StoredTensor], names: tuple[str, str]
) -> tuple[StoredTensor, StoredTensor]:
    """Return A and B of a module, or of experts that are stacked, once each is known to be a factor."""
    for name, partner in (names, names[::-1]):
        if name not in tensors:
            wanted, other = (each.strip(".").removesuffix(".weight") for each in (name, partner))
            has = f"has {other} but no {wanted}" if partner in tensors else f"has neither {other} nor {wanted}"
            raise ValueError(
                f"{module!r} {has}: half of a product is not an update; the file is incomplete, save the adapter again"
            )
    A, B = tensors[names[0]], tensors[names[1]]
    for factor in (A, B):
        if not factor.is_floating:
            raise ValueError(f"{factor.key!r} is stored as {factor.dtype}: {PLAIN_WEIGHTS}")
        if len(factor.shape) < 2 or not factor.size:
            raise ValueError(
                f"{factor.key!r} has shape {factor.shape}, but a factor is a matrix: shards of DeepSpeed ZeRO-3 or "
                "FSDP that were not gathered before saving look so; gather them and save the adapter again"
            )
    return A, B


def build_of(
    module: str, A: StoredTensor, B: StoredTensor, rank: int | None = None
) -> tuple[Callable[..., LowRankUpdate], str]:
    """Return `build` and `fixed` of a layer with two factors, once they are known to have one rank.

    B of a convolution in g groups has rank/g columns: the rank of the configuration distinguishes it from a mistake.
    """
    rows, columns = A.shape[0], B.shape[1]
    groups = rows // columns
    if rows == columns:
        return product, ""
    if len(A.shape) > 2 and rows == rank and rows == groups * columns and B.shape[0] % groups == 0:
        return GroupedProduct(groups), _GROUPED
    raise ValueError(
        f"the factors of {module!r} disagree: A is {describe_shape(A.shape)}, so its rank is {rows}, but B is "
        f"{describe_shape(B.shape)}, so its rank is {columns}"
    )
