"""Two checkpoints of one model, weight by weight: one layer in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.files.checkpoints import Checkpoint, module_name
from lowrank_core.models.files.quantised import check_dequantised
from lowrank_core.models.files.tensors import StoredTensor, Weight, as_matrix, describe_shape, read_blocks, weight_norm
from lowrank_core.models.norms import (
    BLOCK_ENTRIES,
    block_norm,
    difference,
    difference_dtype,
    one_blas_thread,
    subtracted,
    why_not_finite,
)
from lowrank_core.models.pairing.alignment import AlignedNames, Match, align_names, describe_matches
from lowrank_core.models.pairing.changes import OtherChange, change_of, find_tied, only_in
from lowrank_core.models.pairing.fusions import PartMatch, describe_parts, is_stack, match_experts, split_fused
from lowrank_core.rounding_noise import RoundingNoise, rounding_noise

# Rows of a weight that say whether two of them are of one model: those of unrelated weights differ by more than their
# own norm, and a fine-tune's by a small fraction of it.
_SAMPLE_ROWS = 16
_LEAST_AXES = 2


@dataclass(frozen=True)
class WeightPair:
    """One weight in two checkpoints; their difference is the update.

    Attributes
    ----------
    key : str
        The name of its tensor, in the checkpoint that names are taken from.
    base, tuned : StoredTensor or JoinedTensor
        The weight before and after training: a tensor, a part of one, or several of them.
    expert, experts : int
        Which of how many matrices of a stack it is; 0 of 0 for a matrix of its own.
    """

    key: str
    base: Weight
    tuned: Weight
    expert: int = 0
    experts: int = 0
    # What an adapter's layer has beside its update.
    rank: ClassVar[None] = None
    alpha: ClassVar[None] = None
    scaling: ClassVar[None] = None
    parameters: ClassVar[None] = None

    @property
    def module(self) -> str:
        """The name of its tensor without ".weight": of a module, or of a parameter of one."""
        return module_name(self.key)

    @property
    def name(self) -> str:
        """The module's name, with the number of the expert in a stack: "experts.down_proj[0]"."""
        return f"{self.module}[{self.expert}]" if self.experts else self.module

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the update as a matrix; a convolution's is (out, in·kh·kw)."""
        return as_matrix(self.tuned.shape)

    @property
    def dtype(self) -> str:
        """What the weights are stored in; both, where they differ."""
        return self.tuned.dtype if self.base.dtype == self.tuned.dtype else f"{self.base.dtype} → {self.tuned.dtype}"

    @property
    def scaling_source(self) -> str:
        """What the update is the difference of, in words."""
        dequantised = [name for name, side in (("base", self.base), ("tuned", self.tuned)) if side.is_dequantised]
        suffix = f", {' and '.join(dequantised)} dequantised" if dequantised else ""
        return f"difference of the two checkpoints{suffix}"

    @property
    def has_rounding(self) -> bool:
        """Whether the rounding of a stored weight may be of the size of the update."""
        return self.base.is_coarse or self.tuned.is_coarse

    def update(self) -> NDArray[Any]:
        """Read both weights and return their difference, tuned − base, as a matrix of float32 or float64.

        Raises
        ------
        ValueError
            If a weight contains NaN or infinity, or a file cannot be read.

        Notes
        -----
        The difference of two float32, float16 or bfloat16 numbers is rounded once to float32: each entry of the result
        is within 2⁻²⁴ of the true *difference*, relatively, however close the two weights are. That moves no singular
        value by more than 6e-8 of the Frobenius norm (Mirsky), about 1e-8·σ₁ in practice. Both weights are read a block
        of rows at a time, and never in memory as a whole where their files allow it.
        """
        return self._difference()

    def update_and_base_norm(self) -> tuple[NDArray[Any], float]:
        """Read both weights once, and return their difference and the Frobenius norm of the one before training."""
        norms: list[float] = []
        return self._difference(norms), math.hypot(*norms)

    def _difference(self, base_norms: list[float] | None = None) -> NDArray[Any]:
        """Read both weights, and return their difference; if given a list, add the norm of each block of the base."""
        dtypes, finite = (self.base.array_dtype, self.tuned.array_dtype), True
        delta = np.empty(self.tuned.shape, difference_dtype(*dtypes))
        blocks = zip(read_blocks(self.base, BLOCK_ENTRIES), read_blocks(self.tuned, BLOCK_ENTRIES), strict=True)
        for base, _, is_finite in subtracted(blocks, delta.dtype, delta):
            finite = finite and is_finite
            if base_norms is not None:
                base_norms.append(block_norm(base, delta.size))
        if not finite:
            raise ValueError(why_not_finite(read_blocks(self.base), read_blocks(self.tuned), *dtypes))
        return delta.reshape(self.shape)

    def base_norm(self) -> float:
        """Read the weight before training, a block of rows at a time, and return its Frobenius norm."""
        return weight_norm(self.base)

    def update_and_noise(self) -> tuple[NDArray[Any], RoundingNoise]:
        """Read both weights once, and return their difference and the rounding noise in it."""
        _, update, noise = self.base_update_and_noise()
        return update, noise

    def base_update_and_noise(self) -> tuple[NDArray[Any], NDArray[Any], RoundingNoise]:
        """Read both weights once, and return the one before training as well, as a matrix."""
        base, base_step = self.base.read_with_steps(self.shape)
        tuned, tuned_step = self.tuned.read_with_steps(self.shape)
        noise = rounding_noise(base, tuned, base_step=base_step, tuned_step=tuned_step)
        return base, difference(base, tuned), noise


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints of one model, whose weights are aligned by their names.

    Attributes
    ----------
    base, tuned : Checkpoint
        Before and after training.
    names : {"base", "tuned"}
        The checkpoint that layers are named by.
    layers : tuple of WeightPair
        The weights that are floating-point matrices, kernels of convolutions, or stacks of matrices in both.
    unpaired : dict of str to OtherChange
        Weights that are in one checkpoint alone, or of different shapes in the two.
    alignment : tuple of AlignedNames
        How the names of the two differ, where they do.
    others : tuple of (str, StoredTensor, StoredTensor)
        All other tensors that both have: their names, before and after training.
    one_sided : dict of str to OtherChange
        Vectors, and second copies of tied weights, that one checkpoint alone has.
    warnings : tuple of str
        What a user of it should know.
    """

    base: Checkpoint
    tuned: Checkpoint
    names: str
    layers: tuple[WeightPair, ...]
    unpaired: dict[str, OtherChange]
    alignment: tuple[AlignedNames, ...]
    others: tuple[tuple[str, Weight, Weight], ...]
    one_sided: dict[str, OtherChange]
    warnings: tuple[str, ...] = ()
    format: ClassVar[str] = "checkpoints"

    @property
    def incomplete(self) -> dict[str, str]:
        """Weights whose update is not that of a layer, and why."""
        return {name: unpaired.description for name, unpaired in self.unpaired.items()}

    @property
    def module_names(self) -> set[str]:
        """Names of all modules that have a weight, as the layers are named."""
        named = self.base if self.names == "base" else self.tuned
        keys = {*named.tensors, *(layer.key for layer in self.layers if not layer.experts)}
        return {module_name(key) for key in keys if key.endswith(".weight")}

    def fraction_in(self, changed: Collection[str], unchanged: Collection[str], others: Iterable[OtherChange]) -> float:
        """Return the fraction of the entries of all tensors that differ which is in layers that changed.

        Layers that are neither `changed` nor `unchanged` differ too, but could not be compared.
        """
        sizes = {layer.name: layer.tuned.size for layer in self.layers if layer.name not in unchanged}
        differing = sum(sizes.values()) + sum(other.entries for other in (*others, *self.unpaired.values()))
        return sum(size for name, size in sizes.items() if name in changed) / differing if differing else 1.0

    def other_changes(self) -> Iterator[tuple[str, OtherChange]]:
        """Yield the tensors that changed beside the layers, or are vectors of one checkpoint alone, by name."""
        yield from self.one_sided.items()
        for name, before, after in self.others:
            change = change_of(before, after)
            if change is not None:
                yield name, change


def pair_checkpoints(
    base: Checkpoint, tuned: Checkpoint, *, match: Mapping[str, str] | None = None, names: str = "base"
) -> CheckpointPair:
    """Match the weights of two checkpoints of one model.

    Parameters
    ----------
    base, tuned : Checkpoint
        Before and after training.
    match : mapping of str to str, optional
        Beginnings of names of `base`, with those that stand for them in `tuned`, as ``{"model":
        "model.language_model"}``: what names alone leave open.
    names : {"base", "tuned"}
        The checkpoint that layers are named by. A stack of experts is named as the stack, whichever has it.

    Returns
    -------
    CheckpointPair
        Its layers are the weights that are matrices of one shape in both.

    Raises
    ------
    ValueError
        If they have no matrix in common, `match` aligns nothing, or a quantised weight cannot be dequantised.

    See Also
    --------
    open_checkpoint : Open one checkpoint.

    Notes
    -----
    Tensors of one name are one weight. Of the others, two are one weight if they have one shape, the same numbers in
    their names (those of blocks), and each is the only one whose name has that longest end in common with the other's:
    ``model.layers.0.…`` and ``model.language_model.layers.0.…``. What is left may be fused in one of the two (qkv,
    gate and up) or a stack of experts that are modules of their own in the other.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import open_checkpoint, pair_checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, tuned = pathlib.Path(folder, "base.safetensors"), pathlib.Path(folder, "tuned.safetensors")
    ...     save_file({"proj.weight": np.ones((2, 3), np.float32)}, base)
    ...     save_file({"_orig_mod.proj.weight": np.full((2, 3), 1.5, np.float32)}, tuned)
    ...     pair = pair_checkpoints(open_checkpoint(base), open_checkpoint(tuned))
    ...     pair.layers[0].name, pair.layers[0].update()[0, 0].item(), pair.alignment[0].tuned
    ('proj', 0.5, '_orig_mod.*')
    """
    if names not in ("base", "tuned"):
        raise ValueError(f'names are those of "base" or "tuned"; got {names!r}')
    same = _same_components(base, tuned)
    base, tuned = (_without_components(checkpoint, same) for checkpoint in (base, tuned))
    for checkpoint in (base, tuned):
        check_dequantised(checkpoint.path, checkpoint.tensors)
    matches, ambiguous = align_names(base.tensors, tuned.tensors, match or {}, _are_alike)
    left = {key: base.tensors[key] for key in base.tensors.keys() - {match.base for match in matches}}
    right = {key: tuned.tensors[key] for key in tuned.tensors.keys() - {match.tuned for match in matches}}
    parts = [*match_experts(left, right), *split_fused(left, right, _are_alike, by_base=names == "base")]
    layers: list[WeightPair] = []
    others: list[tuple[str, Weight, Weight]] = []
    unpaired: dict[str, OtherChange] = {}
    for part in (*(_whole(each, base, tuned) for each in matches), *parts):
        key = part.base_key if names == "base" else part.tuned_key
        if part.base.shape != part.tuned.shape and _is_matrix(part.base, part.tuned):
            unpaired[module_name(key)] = _of_two_shapes(part.base, part.tuned)
        elif _is_matrix(part.base, part.tuned) and part.base.is_floating and part.tuned.is_floating:
            layers += _layers(key, part)
        else:
            others.append((key, part.base, part.tuned))
    if not layers:
        raise ValueError(_nothing_in_common(base, tuned, unpaired))
    alone = _of_one_alone("base", base, left.keys() - {key for part in parts for key in part.base_keys}, ambiguous)
    alone |= _of_one_alone("tuned", tuned, right.keys() - {key for part in parts for key in part.tuned_keys}, ambiguous)
    unpaired |= {module_name(key): change for key, change in alone.items() if not change.is_vector}
    return CheckpointPair(
        base=base,
        tuned=tuned,
        names=names,
        layers=tuple(sorted(layers, key=lambda layer: (layer.module, layer.expert))),
        unpaired=dict(sorted(unpaired.items())),
        alignment=(*describe_matches(matches), *describe_parts(parts)),
        others=tuple(sorted(others, key=lambda other: other[0])),
        one_sided={key: change for key, change in alone.items() if change.is_vector},
        warnings=(f"the same in both, and not among the layers: {', '.join(same)}",) if same else (),
    )


def _of_one_alone(
    which: str, checkpoint: Checkpoint, keys: Collection[str], ambiguous: Mapping[str, str]
) -> dict[str, OtherChange]:
    """Return what the tensors are that only one checkpoint has."""
    tied = find_tied(keys, checkpoint.tensors)
    return {
        key: only_in(which, checkpoint.tensors[key], tied_to=tied.get(key, ""), candidates=ambiguous.get(key, ""))
        for key in sorted(keys)
    }


def _same_components(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """Return the components of two pipelines whose files are equal, byte for byte."""
    same = []
    for name in base.components:
        before, after = (_files_of(checkpoint, name) for checkpoint in (base, tuned))
        if len(before) == len(after) and all(
            cmp(old, new, shallow=False) for old, new in zip(before, after, strict=True)
        ):
            same.append(name)
    return same


def _files_of(checkpoint: Checkpoint, component: str) -> list[Path]:
    tensors = checkpoint.tensors.items()
    return sorted({tensor.file for key, tensor in tensors if key.startswith(f"{component}.")})


def _without_components(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    beginnings = tuple(f"{name}." for name in names)
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if not key.startswith(beginnings)}
    return replace(checkpoint, tensors=tensors) if names else checkpoint


def _whole(match: Match, base: Checkpoint, tuned: Checkpoint) -> PartMatch:
    """Return two whole tensors that are one weight."""
    before, after = base.tensors[match.base], tuned.tensors[match.tuned]
    return PartMatch(match.base, match.tuned, before, after, (match.base,), (match.tuned,))


def _layers(key: str, part: PartMatch) -> list[WeightPair]:
    """Return the layer that a weight is, or one for each matrix of a stack."""
    base, tuned = part.base, part.tuned
    if not (isinstance(base, StoredTensor) and isinstance(tuned, StoredTensor) and is_stack(key, base.shape)):
        return [WeightPair(key, base, tuned, part.expert, part.experts)]
    count = base.shape[0]
    if count == 1:
        return [WeightPair(key, base.at(0), tuned.at(0))]
    return [WeightPair(key, base.at(index), tuned.at(index), index, count) for index in range(count)]


def _is_matrix(*weights: Weight) -> bool:
    """Whether one of them has more than one axis, and they have entries."""
    return any(len(weight.shape) >= _LEAST_AXES for weight in weights) and all(weight.size for weight in weights)


def _are_alike(base: Weight, tuned: Weight) -> bool:
    """Whether two weights differ by less than their own norm, in their first rows."""
    if not (isinstance(base, StoredTensor) and isinstance(tuned, StoredTensor) and base.shape == tuned.shape):
        return False
    if not (base.shape and base.is_floating and tuned.is_floating):
        return False
    rows = min(_SAMPLE_ROWS, base.shape[0])
    before, after = (side.along(0, 0, rows).read().astype(np.float64) for side in (base, tuned))
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        return bool(np.linalg.norm(after - before) <= max(np.linalg.norm(before), np.linalg.norm(after)))


def _of_two_shapes(base: Weight, tuned: Weight) -> OtherChange:
    description = (
        f"shapes differ: {describe_shape(base.shape)} in the base, {describe_shape(tuned.shape)} in the tuned "
        "checkpoint; a resized vocabulary or another architecture leaves no difference to take"
    )
    return OtherChange(description, max(base.size, tuned.size), is_vector=False)


def _nothing_in_common(base: Checkpoint, tuned: Checkpoint, unpaired: Mapping[str, OtherChange]) -> str:
    both = {name: change.description for name, change in unpaired.items() if "shapes" in change.description}
    name, why = next(iter(both.items()), ("", ""))
    example = f". Of {name!r} the {why}" if why else ""
    return (
        f"{str(base.path)!r} and {str(tuned.path)!r} have no 2-D weight in common: the first has {_example(base)}, "
        f"the second {_example(tuned)}{example}. Both have to be checkpoints of one model; names that differ are "
        "aligned where shapes and the ends of names leave one way to do so, and otherwise as you say (--match OLD=NEW)"
    )


def _example(checkpoint: Checkpoint) -> str:
    matrices = [tensor for tensor in checkpoint.tensors.values() if _is_matrix(tensor)]
    return f"{len(matrices)}, as {matrices[0].key!r} ({matrices[0].dtype})" if matrices else "none"
