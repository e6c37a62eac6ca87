"""The pipeline of every operation that writes an adapter, with one layer in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lowrank_core import LowRankUpdate
from lowrank_core._dtypes import as_dtype
from lowrank_core.models.executors import Progress, map_layers
from lowrank_core.models.files.atomic import replacing
from lowrank_core.models.files.streams import Stream
from lowrank_core.models.formats import Adapter, Placement, format_named
from lowrank_core.models.formats.adapter import transposed
from lowrank_core.models.formats.format import Headers, StoredScale
from lowrank_core.models.norms import frobenius_norm, ratio
from lowrank_core.models.operations.compression import Compression, LayerCompression, totals_of
from lowrank_core.models.operations.destinations import Output, OutputFiles, OutputInMemory
from lowrank_core.models.operations.factor_warnings import noise_warnings, size_warnings, storage_warnings
from lowrank_core.models.operations.factoring import (
    Factored,
    FactorEncoding,
    factor,
    factor_each,
    item_size,
    unchanged,
)
from lowrank_core.models.operations.placing import check_distinct
from lowrank_core.models.operations.rank_choice import (
    AboveNoise,
    Budget,
    LayerRank,
    Rank,
    check_rank,
    layer_spectra,
    over_base,
    rank_of,
)
from lowrank_core.models.operations.storing import (
    add_factors,
    bytes_beside_factors,
    complete,
    copy_tensors,
    stored_scales,
)
from lowrank_core.models.operations.tasks import Destination, Task
from lowrank_core.models.rounding import rounded


def compress(
    verb: str,
    sources: Sequence[str],
    tasks: Sequence[Task],
    destination: Destination,
    *,
    skipped: Mapping[str, str],
    failures: Mapping[str, str],
    warnings: Sequence[str],
    executor: Executor | None,
    progress: Progress | None,
) -> list[Compression]:
    """Truncate each layer, write its factors, and return a report for each rank, which names `verb` and `sources`.

    Each layer is decomposed once, for all ranks.

    `skipped`, `failures` and `warnings` are what is known before. The layers are truncated on the executor and written
    here, in their order; on return, the adapters are in their places.
    """
    places = destination.format.beside(task.placement for task in tasks)
    tasks = [replace(task, placement=places[task.placement]) for task in tasks]
    check_distinct(task.placement for task in tasks)
    for rank in destination.ranks.values():
        check_rank(rank, [task.name for task in tasks])
    ranks = [
        _allocated(rank, tasks, destination, executor, progress) if isinstance(rank, Budget) else rank
        for rank in destination.ranks.values()
    ]
    with ExitStack() as stack:
        outputs = [
            _output(path, destination, stack, _size(tasks, rank, destination))
            for path, rank in zip(destination.ranks, ranks, strict=True)
        ]
        adapters = _write_layers(tasks, destination, ranks, outputs, executor, progress)
        completed: list[Adapter | None] = []
        for output, written in zip(outputs, adapters, strict=True):
            if not written.scales:
                raise ValueError(_nothing_kept(sources, len(tasks), written.failures | dict(failures)))
            completed.append(None if output is None else _complete(output, destination, written))
    reports = [
        _report(verb, sources, path, rank, destination, written, skipped, failures, warnings)
        for (path, rank), written in zip(destination.ranks.items(), adapters, strict=True)
    ]
    if not destination.in_memory:
        return reports
    return [replace(report, adapter=adapter) for report, adapter in zip(reports, completed, strict=True)]


def _output(path: Path, destination: Destination, stack: ExitStack, size: int) -> Output | None:
    """Return where an adapter is written: to files that take their place when the stack is left, or to memory."""
    if destination.dry_run:
        return None
    if destination.in_memory:
        return OutputInMemory()
    target = destination.format
    return OutputFiles(stack.enter_context(replacing(path, folder=bool(target.files), size=size)), target)


def _complete(output: Output, destination: Destination, written: _Written) -> Adapter:
    """Complete what was written, and return it as it is read back."""
    target = destination.format
    metadata = target.metadata(destination.kept) | dict(written.headers.metadata)
    return complete(output, target, written.scales, written.headers, written.unpadded, metadata)


def _size(
    tasks: Sequence[Task], rank: LayerRank | Mapping[str, int] | AboveNoise | None, destination: Destination
) -> int:
    """Return a bound on the bytes of an adapter's file; 0 where ranks follow from spectra or factors."""
    counts = [count for task in tasks if isinstance(count := rank_of(rank, task.name), int)]
    if len(counts) < len(tasks):
        return 0
    entries = sum(min(count, *task.shape) * sum(task.shape) for task, count in zip(tasks, counts, strict=True))
    return entries * as_dtype(destination.encoding.dtype).itemsize + _bytes_beside(tasks, destination)


def _bytes_beside(tasks: Sequence[Task], destination: Destination) -> int:
    """Return a bound on what an adapter's file has beside its factors."""
    beside = [other.tensor for other in (*destination.copied, *(bias for task in tasks for bias in task.biases))]
    return bytes_beside_factors(_keys(tasks, destination), destination.format.metadata(destination.kept), beside)


def _report(
    verb: str,
    sources: Sequence[str],
    path: Path,
    rank: Rank | None,
    destination: Destination,
    written: _Written,
    skipped: Mapping[str, str],
    failures: Mapping[str, str],
    warnings: Sequence[str],
) -> Compression:
    """Return what became of the layers of one adapter, with what was known of them before."""
    target, encoding = destination.format, destination.encoding
    failures = written.failures | dict(failures)
    layers = tuple(
        _layer_report(task, factored, written.scales.get(task.placement), encoding)
        for task, factored in written.layers
        if factored.norm > 0 or factored.rank > 0
    )
    noticed = (*size_warnings(layers), *storage_warnings(layers, encoding), *noise_warnings(written.layers, rank))
    return Compression(
        verb=verb,
        sources=tuple(sources),
        out=str(path),
        format=target.name,
        written=not (destination.dry_run or destination.in_memory),
        dtype=encoding.dtype,
        rule=encoding.rule,
        reader_rule=encoding.rule if encoding.rule in target.rules else target.rules[0],
        layers=layers,
        unchanged=tuple(task.name for task, factored in written.layers if factored.norm == 0 and factored.rank == 0),
        skipped=dict(sorted(skipped.items())),
        copied={other.name: other.describe() for other in destination.copied},
        failures=dict(sorted(failures.items())),
        complete=not (failures or skipped),
        warnings=tuple(dict.fromkeys((*warnings, *written.headers.warnings, *noticed))),
        totals=totals_of(layers, len(failures)),
        config=written.headers.config,
    )


def _allocated(
    budget: Budget,
    tasks: Sequence[Task],
    destination: Destination,
    executor: Executor | None,
    progress: Progress | None,
) -> dict[str, int]:
    """Read every layer's spectrum and return each layer's rank; a layer that cannot be read fails when factored."""
    if destination.encoding.uniform:
        raise ValueError("uniform pads every layer to the largest rank of all, which no budget provides for: give one")
    other_bytes = _bytes_beside(tasks, destination)
    budget = budget.in_parameters(as_dtype(destination.encoding.dtype).itemsize, other_bytes)
    spectra, failures = layer_spectra(tasks, executor=executor, progress=progress)
    if budget.objective == "base":
        spectra = over_base(spectra, tasks, executor)
    ranks = budget.allocate(spectra).ranks if spectra else {}
    return ranks | dict.fromkeys(failures, 0)


class _Written(NamedTuple):
    """The layers that were factored, without their factors; those that failed; and what the file says of the kept.

    `unpadded` is what it would say of their factors before they are padded to one rank.
    """

    layers: list[tuple[Task, Factored]]
    failures: dict[str, str]
    scales: dict[Placement, StoredScale]
    headers: Headers
    unpadded: Headers


def _write_layers(
    tasks: Sequence[Task],
    destination: Destination,
    ranks: Sequence[LayerRank | Mapping[str, int] | AboveNoise | None],
    outputs: Sequence[Output | None],
    executor: Executor | None,
    progress: Progress | None,
) -> list[_Written]:
    """Factor every layer at each rank, and write it where there is a file to write."""
    target, encoding = destination.format, destination.encoding
    size = as_dtype(encoding.dtype).itemsize
    copied = sorted(destination.copied, key=lambda other: -item_size(other.tensor))
    keys = _keys(tasks, destination)
    encodings = _encodings(tasks, encoding)
    jobs = [_Job(task, tuple(rank_of(rank, task.name) for rank in ranks), encodings[task.placement]) for task in tasks]
    layers: list[list[tuple[Task, Factored]]] = [[] for _ in ranks]
    failures: dict[str, str] = {}
    metadata = target.metadata(destination.kept)
    with ExitStack() as stack:
        streams = [None if output is None else stack.enter_context(output.stream(keys, metadata)) for output in outputs]
        results = stack.enter_context(closing(map_layers(_factored, jobs, executor, progress)))
        for stream in streams:
            copy_tensors(stream, (other for other in copied if item_size(other.tensor) >= size))
        # Of experts in the same tensors, all are there before the first is written.
        for _, members in groupby(results, lambda result: result[0].task.placement.keys):
            factored: list[tuple[_Job, list[Factored]]] = []
            for job, result in members:
                if isinstance(result, str):
                    failures[job.name] = result
                else:
                    factored.append((job, result))
            for position, stream in enumerate(streams):
                if stream is not None:
                    _add_layers(stream, [(job, results[position]) for job, results in factored])
                layers[position] += [(job.task, replace(results[position], update=None)) for job, results in factored]
        for stream in streams:
            copy_tensors(stream, (other for other in copied if item_size(other.tensor) < size))
        adapters = [_described(of_rank, failures, destination) for of_rank in layers]
        for stream, written in zip(streams, adapters, strict=True):
            if stream is not None:
                stream.metadata.update(written.headers.metadata)
    return adapters


def _keys(tasks: Sequence[Task], destination: Destination) -> list[str]:
    """Return the names of all tensors that may be written."""
    keys = [key for task in tasks for key in (*task.placement.keys, *(bias.tensor.key for bias in task.biases))]
    return keys + [other.tensor.key for other in destination.copied]


def _described(layers: list[tuple[Task, Factored]], failures: dict[str, str], destination: Destination) -> _Written:
    """Return the layers of one adapter with what its file says of them."""
    target, encoding = destination.format, destination.encoding
    kept = {task.placement: (result.rank, result.scaling) for task, result in layers if result.rank}
    scales = stored_scales(kept, encoding)
    headers = unpadded = Headers()
    if scales:
        headers = target.headers(scales, encoding.rule, destination.kept)
        ranks = stored_scales(kept, replace(encoding, uniform=False))
        unpadded = target.headers(ranks, encoding.rule, destination.kept)
    return _Written(layers, failures, scales, headers, unpadded)


def _add_layers(stream: Stream, factored: Sequence[tuple[_Job, Factored]]) -> None:
    """Write one layer and its biases, or the experts that are stacked in the same tensors."""
    updates: dict[Placement, LowRankUpdate] = {}
    for (task, _, encoding), result in factored:
        update = result.update
        if update is not None:
            updates[task.placement] = transposed(update) if task.transposed else update
            for bias in task.biases:
                values = bias.tensor.read().astype(np.float64) * ((bias.scaling or 1.0) / update.scaling)
                stream.add(bias.tensor.key, rounded(values, encoding.dtype))
    if updates:
        rank = max(update.rank for update in updates.values())
        add_factors(stream, updates, factored[0][0].encoding.stored_scale(rank).alpha)


class _Job(NamedTuple):
    """One layer, and how it is truncated and stored, at each rank: all that a worker needs."""

    task: Task
    ranks: tuple[LayerRank | AboveNoise | None, ...]
    encoding: FactorEncoding

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.task.name


def _factored(job: _Job) -> list[Factored]:
    task, ranks, encoding = job
    if isinstance(ranks[0], AboveNoise):
        return [_above_noise(task, ranks[0], encoding)]
    update, base_norm = task.read()
    counted = [rank for rank in ranks if not (rank is None or isinstance(rank, AboveNoise))]
    if len(counted) == len(ranks):
        each = factor_each(update, counted, encoding, min_rank=task.min_rank, tolerance=task.tolerance)
    else:
        each = [unchanged(update, encoding)]
    return [replace(factored, base_norm=base_norm) for factored in each]


def _above_noise(task: Task, rank: AboveNoise, encoding: FactorEncoding) -> Factored:
    """Factor what is above the rounding noise of a layer."""
    if task.base_update_and_noise is None:
        raise ValueError("what storing has added is known of the difference of two checkpoints, and not of an adapter")
    base, update, noise = task.base_update_and_noise()
    factored = factor(update, partial(rank.rank, noise), encoding, min_rank=task.min_rank)
    return replace(factored, noise=noise, base_norm=frobenius_norm(base))


def _encodings(tasks: Sequence[Task], encoding: FactorEncoding) -> dict[Placement, FactorEncoding]:
    """Return each layer's encoding: its own format's, or the scale 1 where the file has none for this layer alone."""
    members = Counter(task.placement.module for task in tasks)
    unit = replace(encoding, alpha=None, rule="standard", uniform=True)
    return {
        task.placement: unit
        if task.placement.unscaled or members[task.placement.module] > 1
        else replace(encoding, alpha=task.alpha or encoding.alpha, scale=format_named(task.placement.format).scale)
        for task in tasks
    }


def _layer_report(
    task: Task, factored: Factored, scale: StoredScale | None, encoding: FactorEncoding
) -> LayerCompression:
    stored_rank = 0 if scale is None else scale.rank
    parameters = stored_rank * sum(task.shape)
    return LayerCompression(
        name=task.name,
        shape=task.shape,
        dtype=task.dtype,
        rank=factored.rank,
        requested_rank=factored.requested_rank,
        stored_rank=stored_rank,
        alpha=None if scale is None else scale.alpha,
        scaling=None if scale is None else scale.scaling,
        norm=factored.norm,
        base_norm=factored.base_norm,
        relative_norm=None if factored.base_norm is None else ratio(factored.norm, factored.base_norm),
        singular_values=factored.singular_values,
        variance_captured=factored.variance_captured,
        best_error=factored.best_error,
        error=factored.error,
        storage_error=factored.storage_error,
        missed=factored.missed,
        source_parameters=sum(tensor.size for tensor in task.tensors),
        source_bytes=sum(tensor.size * item_size(tensor) for tensor in task.tensors),
        parameters=parameters,
        bytes=parameters * as_dtype(encoding.dtype).itemsize,
    )


def _nothing_kept(sources: Sequence[str], tasks: int, failures: Mapping[str, str]) -> str:
    adapters = " and ".join(repr(source) for source in sources)
    if failures:
        name, reason = next(iter(failures.items()))
        return f"no layer of {adapters} could be compressed; the first of {len(failures)}, {name}: {reason}"
    return f"nothing to write: none of the {tasks} layers of {adapters} keeps a component, and an adapter needs one"
