"""Two checkpoints of one model, weight by weight: one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lowrank_core.models.files.checkpoints import Checkpoint, module_name
from lowrank_core.models.files.tensors import PLAIN_WEIGHTS, StoredTensor, as_matrix, describe, describe_shape
from lowrank_core.models.norms import difference, frobenius_norm
from lowrank_core.rounding_noise import RoundingNoise, rounding_noise

_MATRIX_AXES = (2, 4)


@dataclass(frozen=True)
class WeightPair:
    """One weight in two checkpoints; their difference is the update.

    Attributes
    ----------
    name : str
        The module's name: the tensor's, without ".weight".
    base, tuned : StoredTensor
        The weight before and after training.
    """

    name: str
    base: StoredTensor
    tuned: StoredTensor
    # What an adapter's layer has beside its update.
    rank: ClassVar[None] = None
    alpha: ClassVar[None] = None
    scaling: ClassVar[None] = None
    scaling_source: ClassVar[str] = "difference of the two checkpoints"
    parameters: ClassVar[None] = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the update as a matrix; a convolution's is (out, in·kh·kw)."""
        return as_matrix(self.tuned.shape)

    @property
    def dtype(self) -> str:
        """What the weights are stored in; both, where they differ."""
        return self.tuned.dtype if self.base.dtype == self.tuned.dtype else f"{self.base.dtype} → {self.tuned.dtype}"

    def update(self) -> NDArray[Any]:
        """Read both weights and return their difference, tuned − base, as a matrix of float32 or float64.

        Raises
        ------
        ValueError
            If a weight contains NaN or infinity, or a file cannot be read.

        Notes
        -----
        The subtraction is made in float64, which represents the difference of two float32, float16 or bfloat16 numbers
        exactly up to 29 binary orders between them. Of two such weights it is then rounded once to float32: each entry
        of the result is within 2⁻²⁴ of the true *difference*, relatively, however close the two weights are. That
        moves no singular value by more than 6e-8 of the Frobenius norm (Mirsky), about 1e-8·σ₁ in practice.
        """
        return difference(self.base.read(), self.tuned.read()).reshape(self.shape)

    def update_and_noise(self) -> tuple[NDArray[Any], RoundingNoise]:
        """Read both weights once, and return their difference and the rounding noise in it."""
        base, tuned = self.base.read().reshape(self.shape), self.tuned.read().reshape(self.shape)
        return difference(base, tuned), rounding_noise(base, tuned)


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints of one model, matched by the names of their tensors.

    Attributes
    ----------
    base, tuned : Checkpoint
        Before and after training.
    layers : tuple of WeightPair
        The weights that are floating-point matrices (two axes, or four for a convolution) of one shape in both.
    unsupported : dict of str to str
        Weights that are matrices of different shapes in the two: name, and the two shapes.
    """

    base: Checkpoint
    tuned: Checkpoint
    layers: tuple[WeightPair, ...]
    unsupported: dict[str, str]
    format: ClassVar[str] = "checkpoints"
    warnings: ClassVar[tuple[str, ...]] = ()

    @property
    def incomplete(self) -> dict[str, str]:
        """Modules whose update is not that of a layer, and why."""
        return self.unsupported

    def other_changes(self) -> Iterator[tuple[str, str]]:
        """Yield the tensors that changed beside the layers, or are in one checkpoint only: names and descriptions."""
        matrices = {pair.base.key for pair in self.layers}
        for key in sorted(self.base.tensors.keys() ^ self.tuned.tensors.keys()):
            which, tensors = ("base", self.base.tensors) if key in self.base.tensors else ("tuned", self.tuned.tensors)
            yield key, f"only in the {which} checkpoint: {describe(tensors[key])}"
        for key in sorted(self.base.tensors.keys() & self.tuned.tensors.keys() - matrices):
            change = _describe_change(self.base.tensors[key], self.tuned.tensors[key])
            if change and module_name(key) not in self.unsupported:
                yield key, change


def pair_checkpoints(base: Checkpoint, tuned: Checkpoint) -> CheckpointPair:
    """Match two checkpoints of one model by the names of their tensors.

    Parameters
    ----------
    base, tuned : Checkpoint
        Before and after training.

    Returns
    -------
    CheckpointPair
        Its layers are the weights that are matrices of one shape in both.

    Raises
    ------
    ValueError
        If they have no matrix in common.

    See Also
    --------
    open_checkpoint : Open one checkpoint.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.pairing.pairs import pair_checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, tuned = pathlib.Path(folder, "base.safetensors"), pathlib.Path(folder, "tuned.safetensors")
    ...     save_file({"layer.weight": np.ones((2, 3), np.float32)}, base)
    ...     save_file({"layer.weight": np.full((2, 3), 1.5, np.float32)}, tuned)
    ...     pair = pair_checkpoints(open_checkpoint(base), open_checkpoint(tuned))
    ...     pair.layers[0].name, pair.layers[0].update()[0, 0].item()
    ('layer', 0.5)
    """
    layers: list[WeightPair] = []
    unsupported: dict[str, str] = {}
    for key in sorted(base.tensors.keys() & tuned.tensors.keys()):
        before, after = base.tensors[key], tuned.tensors[key]
        scale = _scale_of(base, key) or _scale_of(tuned, key)
        if scale:
            unsupported[module_name(key)] = f"quantised, with its scale in {scale!r}: dequantise the model first"
            continue
        if not {len(before.shape), len(after.shape)} & set(_MATRIX_AXES):
            continue
        if before.shape != after.shape:
            unsupported[module_name(key)] = (
                f"shapes differ: {describe_shape(before.shape)} in the base, {describe_shape(after.shape)} in the "
                "tuned checkpoint; a resized vocabulary or another architecture leaves no difference to take"
            )
        elif before.is_floating and after.is_floating and before.size:
            layers.append(WeightPair(module_name(key), before, after))
    if not layers and not unsupported:
        raise ValueError(
            f"{str(base.path)!r} and {str(tuned.path)!r} have no 2-D weight in common: the first has {_example(base)}, "
            f"the second {_example(tuned)}. Both have to be checkpoints of one model, with the same names"
        )
    return CheckpointPair(base, tuned, tuple(layers), unsupported)


def _scale_of(checkpoint: Checkpoint, key: str) -> str:
    """Return the name of the tensor that an 8-bit floating-point weight is to be multiplied by; "" if there is none."""
    if not checkpoint.tensors[key].dtype.startswith("float8"):
        return ""
    module = module_name(key)
    names = (f"{module}.{ending}" for ending in ("weight_scale", "weight_scale_inv", "scale_weight"))
    return next((name for name in names if name in checkpoint.tensors), "")


def _example(checkpoint: Checkpoint) -> str:
    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) in _MATRIX_AXES]
    return f"{len(matrices)}, as {matrices[0].key!r} ({matrices[0].dtype})" if matrices else "none"


def _describe_change(before: StoredTensor, after: StoredTensor) -> str:
    """Return the change of a tensor in words, with its norm; nothing where it did not change."""
    stored = f"{describe_shape(after.shape)}, {after.dtype}"
    if before.shape != after.shape:
        return f"shapes differ: {describe_shape(before.shape)} in the base, {describe_shape(after.shape)} in the tuned"
    if not (before.is_readable and after.is_readable):
        return f"not compared: {stored}; {PLAIN_WEIGHTS}"
    base, tuned = np.atleast_1d(before.read()), np.atleast_1d(after.read())
    if not (before.is_floating and after.is_floating):
        changed = int(np.count_nonzero(base != tuned))
        return f"changed in {changed} of {after.size} entries: {stored}; {PLAIN_WEIGHTS}" if changed else ""
    try:
        change = frobenius_norm(difference(base, tuned))
    except ValueError as error:
        return f"{stored}: {error}"
    return f"changed by norm {change:.4g} (its own {frobenius_norm(base):.4g}): {stored}" if change else ""
