"""Compare adapters, or fine-tunes of one base: layer by layer, each pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import lowrank_core
from lowrank_core.models.executors import Progress, collect_layers
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer
from lowrank_core.models.formats.base_names import base_names, is_lossy
from lowrank_core.models.inspection.layers import open_updates
from lowrank_core.models.norms import Update
from lowrank_core.models.operations.compared import ComparedLayer, ComparedPair, UpdateComparison, total
from lowrank_core.models.pairing.pairs import CheckpointPair, WeightPair
from lowrank_core.models.sources import Source, name_of, names_of

DEFAULT_RANK = 16

Layer = AdapterLayer | WeightPair


def compare(
    paths: Sequence[Source],
    base: Source | None = None,
    *,
    match: Mapping[str, str] | None = None,
    component: str | None = None,
    rank: int = DEFAULT_RANK,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> UpdateComparison:
    r"""Compare the updates of adapters, or of fine-tunes of one base, in pairs and layer by layer.

    Parameters
    ----------
    paths : sequence of path-like, mapping, model, Adapter or Checkpoint
        At least two adapters, of any formats; with `base`, adapters or checkpoints. As
        :func:`~lowrank_core.models.inspect` takes each.
    base : path-like, mapping, model or Checkpoint, optional
        The checkpoint that all were tuned from.
    match, component
        As :func:`~lowrank_core.models.inspect`, for checkpoints.
    rank : int
        How many leading singular vectors of each update are compared; those of an update that has fewer are all.
    executor, progress
        As :func:`~lowrank_core.models.inspect`; a task is one layer of one pair.

    Returns
    -------
    UpdateComparison
        Layers of a name are compared, in alphabetical order; those that only one of a pair has are named.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If there are fewer than two paths, two of them have no layer in common, a file is damaged or of an unknown kind,
        or the rank is negative. A single bad layer is a failure in the result.

    See Also
    --------
    lowrank_core.compare : What is computed, of two updates.
    lowrank_core.models.merge : The sum.

    Notes
    -----
    The totals are those of all layers as the diagonal blocks of one update: the inner product is
    :math:`\sum_l \langle \Delta_1^{(l)}, \Delta_2^{(l)} \rangle`. Overlap is geometry and no promise about what a model
    does with the sum.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import compare
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, f"{name}.safetensors") for name in ("one", "two")]
    ...     for path, size in zip(paths, (1.0, -1.0)):
    ...         save_file({"lora_unet_proj.lora_down.weight": np.eye(1, 4, dtype=np.float32),
    ...                    "lora_unet_proj.lora_up.weight": np.full((2, 1), size, np.float32)}, path)
    ...     pair = compare(paths).pairs[0]
    >>> round(pair.totals.cosine, 12), pair.totals.sum_norm, pair.totals.cancelling
    (-1.0, 0.0, ('lora_unet_proj',))
    """
    if len(paths) < 2:
        raise ValueError(f"a comparison is of at least two adapters or checkpoints; got {len(paths)}")
    if rank < 0:
        raise ValueError(f"the rank is a whole number of at least 0; got {rank}")
    sources = [open_updates(path, base, match=match, component=component) for path in paths]
    names = names_of(paths)
    layers = _by_module(sources)
    pairs = tuple(
        _compare_pair((names[i], names[j]), (layers[i], layers[j]), rank, executor, progress)
        for i, j in combinations(range(len(paths)), 2)
    )
    others = {
        f"{name} ({path})": other
        for path, source in zip(names, sources, strict=True)
        for name, other in source.other_changes()
    }
    unread = {
        f"{name} ({path})": reason
        for path, source in zip(names, sources, strict=True)
        for name, reason in source.incomplete.items()
    }
    one_sided = any(pair.failures or pair.only_in_first or pair.only_in_second for pair in pairs)
    return UpdateComparison(
        paths=tuple(names),
        base=None if base is None else name_of(base),
        rank=rank,
        pairs=pairs,
        cosines=_matrix(len(paths), [pair.totals.cosine for pair in pairs]),
        not_low_rank={name: other.description for name, other in others.items()},
        failures=unread,
        complete=not (one_sided or unread) and all(other.is_vector for other in others.values()),
        warnings=tuple(
            f"{path}: {warning}" for path, source in zip(names, sources, strict=True) for warning in source.warnings
        ),
    )


@dataclass(frozen=True)
class _PairOfLayers:
    """A layer of two sources, not yet read."""

    name: str
    first: Layer
    second: Layer

    def updates(self) -> tuple[Update, Update]:
        """Read both updates, in one orientation."""
        if self.first.shape != self.second.shape and sorted(self.first.shape) != sorted(self.second.shape):
            raise ValueError(
                f"its shapes disagree, {self.first.shape} and {self.second.shape}: the two are of different models"
            )
        if isinstance(self.first, WeightPair) or isinstance(self.second, WeightPair):
            # As weights are stored.
            return self.first.update(), self.second.update()
        return self.first.untransposed_update(), self.second.untransposed_update()


def _by_module(sources: Sequence[Adapter | CheckpointPair]) -> list[dict[str, Layer]]:
    """Return the layers of each source by the base model's name of their module."""
    known = [
        layer.name
        for source in sources
        for layer in source.layers
        if isinstance(layer, WeightPair) or not is_lossy(layer.placement)
    ]
    gathered: list[dict[str, Layer]] = []
    for source in sources:
        if isinstance(source, Adapter):
            names = base_names(source, known)
            gathered.append({names[layer.name]: layer for layer in source.layers})
        else:
            gathered.append({layer.name: layer for layer in source.layers})
    return gathered


def _compare_pair(
    names: tuple[str, str],
    layers: tuple[Mapping[str, Layer], Mapping[str, Layer]],
    rank: int,
    executor: Executor | None,
    progress: Progress | None,
) -> ComparedPair:
    first, second = layers
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError(
            f"{names[0]!r} and {names[1]!r} have no layer in common: the first has {_example(first)}, the second "
            f"{_example(second)}. They are of different models, or change different modules"
        )
    pairs = [_PairOfLayers(name, first[name], second[name]) for name in common]
    compared, failures = collect_layers(partial(_compare_layer, rank=rank), pairs, executor, progress)
    reports = [report for _, report in compared]
    return ComparedPair(
        first=names[0],
        second=names[1],
        totals=total(reports),
        layers=tuple(reports),
        only_in_first=tuple(sorted(first.keys() - second.keys())),
        only_in_second=tuple(sorted(second.keys() - first.keys())),
        failures=failures,
    )


def _example(layers: Mapping[str, Layer]) -> str:
    return f"{min(layers)!r} and others" if len(layers) > 1 else repr(next(iter(layers), "none"))


def _compare_layer(pair: _PairOfLayers, rank: int) -> ComparedLayer:
    one, other = pair.updates()
    compared = lowrank_core.compare(one, other, rank=min(rank, *one.shape[-2:]))
    return ComparedLayer(
        name=pair.name,
        shape=compared.shape,
        first_norm=float(compared.first_norm),
        second_norm=float(compared.second_norm),
        cosine=float(compared.cosine),
        cosine_deviation=compared.cosine_deviation,
        sum_norm=float(compared.sum_norm),
        orthogonal_norm=float(compared.orthogonal_norm),
        columns=compared.columns,
        rows=compared.rows,
    )


def _matrix(count: int, cosines: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return the symmetric matrix of cosines of all pairs, in their order."""
    by_pair = dict(zip(combinations(range(count), 2), cosines, strict=True))
    return tuple(tuple(1.0 if i == j else by_pair[min(i, j), max(i, j)] for j in range(count)) for i in range(count))
