"""Updates become an adapter's file, one layer in memory at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowrank_core._dtypes import FLOATS, as_dtype
from lowrank_core.models.executors import map_in_order
from lowrank_core.models.files.atomic import check_replaceable, replacing
from lowrank_core.models.files.streams import TensorStream, stream_tensors
from lowrank_core.models.files.tensors import StoredTensor, open_file
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.headers import Header, check_headers, described_adapter, headers_of, kohya_dimensions
from lowrank_core.models.formats.peft import PEFT_CONFIG, PEFT_WEIGHTS
from lowrank_core.models.formats.peft_configuration import peft_config
from lowrank_core.models.formats.placements import Placement, check_distinct, pad_rank
from lowrank_core.models.operations.above_noise import AboveNoise
from lowrank_core.models.operations.budgets import Budget, Source, layer_spectra
from lowrank_core.models.operations.compression import Compression, LayerCompression, totals_of
from lowrank_core.models.operations.factoring import (
    Factored,
    Form,
    LayerRank,
    Rank,
    check_rank,
    factor,
    rank_of,
    wider_than,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from lowrank_core import LowRankUpdate
    from lowrank_core.models.formats.adapter import OtherTensor
    from lowrank_core.rounding_noise import RoundingNoise

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """
    One layer to be compressed.

    Attributes
    ----------
    placement : Placement
        Where its factors go, and its name.
    shape : tuple of int
        Shape (m, n) of its update.
    dtype : str
        What it is stored in.
    source_parameters, source_bytes : int
        Number of entries that it has now, and what they take.
    update : callable
        Reads it: gives an array or a LowRankUpdate. Picklable, as the whole task is: it may run in another process.
    biases : tuple of OtherTensor
        Tensors that a reader multiplies with the layer's scale, and that have to follow it.
    at_least : int
        The least rank: 1 where other tensors of the adapter need the layer to be there.
    update_and_noise : callable or None
        Reads the update with its rounding noise, where there are two stored weights.
    """

    placement: Placement
    shape: tuple[int, int]
    dtype: str
    source_parameters: int
    source_bytes: int
    update: Callable[[], NDArray[Any] | LowRankUpdate]
    biases: tuple[OtherTensor, ...] = ()
    at_least: int = 0
    update_and_noise: Callable[[], tuple[NDArray[Any], RoundingNoise]] | None = None


@dataclass(frozen=True)
class Destination:
    """
    What is to be written, and how.

    Attributes
    ----------
    path : Path
        A folder for PEFT, a file that ends in .safetensors for kohya.
    form : Form
        How factors are stored.
    force : bool
        Whether what is there is replaced.
    dry_run : bool
        Whether nothing is written.
    settings : mapping
        Entries of PEFT's configuration to keep.
    metadata : mapping of str to str
        Entries of a kohya file's metadata to keep.
    modules : tuple of str
        All modules of the base model that are known.
    carried : tuple of OtherTensor
        Tensors to copy as they are.
    """

    path: Path
    form: Form
    force: bool
    dry_run: bool
    settings: Mapping[str, Any]
    metadata: Mapping[str, str]
    modules: tuple[str, ...] = ()
    carried: tuple[OtherTensor, ...] = ()


def is_kohya_path(path: Path) -> bool:
    """
    Tell by its name what an output will be.

    Parameters
    ----------
    path : Path
        The output.

    Returns
    -------
    bool
        Whether it is a kohya file (".safetensors"); else it is a PEFT folder.
    """
    return path.suffix == ".safetensors"


def check_destination(path: Path, *, force: bool, dry_run: bool) -> None:
    """
    Refuse an output that may not be written, before anything is read.

    Parameters
    ----------
    path : Path
        The output.
    force, dry_run : bool
        As in :class:`Destination`.

    Raises
    ------
    OSError
        As :func:`lowrank_core.models.files.atomic.check_replaceable`; never for a dry run.
    """
    if not dry_run:
        check_replaceable(path, None if is_kohya_path(path) else (PEFT_CONFIG, PEFT_WEIGHTS), force=force)


def compress(
    verb: str,
    sources: Sequence[str],
    tasks: Sequence[Task],
    destination: Destination,
    rank: Rank,
    *,
    left_out: Mapping[str, str],
    failures: Mapping[str, str],
    warnings: Sequence[str],
    executor: Executor | None,
    progress: Progress | None,
) -> Compression:
    """
    Truncate layers each on its own, write their factors as they come, and report.

    Parameters
    ----------
    verb : str
        "extract", "resize" or "merge".
    sources : sequence of str
        What the layers came from.
    tasks : sequence of Task
        The layers.
    destination : Destination
        What to write.
    rank : int, callable, mapping, Budget or AboveNoise
        How many components to keep, clamped to what each layer has.
    left_out, failures : mapping of str to str
        What is known before to be missing from the result.
    warnings : sequence of str
        What is known before to be said.
    executor : Executor or None
        Where the layers are truncated; they are written here.
    progress : callable or None
        Called as ``progress(name, done, total)`` after each layer.

    Returns
    -------
    Compression
        The report; the adapter is in its place.

    Raises
    ------
    ValueError
        If the rank is not one, or no layer is left to write.
    """
    check_distinct(task.placement for task in tasks)
    check_rank(rank, [task.placement.name for task in tasks])
    form, path = destination.form, destination.path
    if isinstance(rank, Budget):
        rank = _shared_out(rank, tasks, form, executor, progress)
    place = nullcontext(None) if destination.dry_run else replacing(path, folder=not form.kohya)
    with place as temporary:
        weights = None if temporary is None else (temporary if form.kohya else temporary / PEFT_WEIGHTS)
        done, failed = _write_layers(tasks, destination, rank, weights, executor, progress)
        headers = _headers(done, form)
        if not headers:
            raise ValueError(_nothing_kept(sources, len(tasks), failed | dict(failures)))
        config = None if form.kohya else _config(headers, destination)
        if weights is not None and temporary is not None:
            if any(headers[task.placement].rank > factored.rank for task, factored in done if factored.rank):
                _pad_file(weights, headers, form)
            if config is not None:
                (temporary / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            check_headers(open_adapter(temporary), headers)
        if config is not None:
            as_read = described_adapter(path, headers, config, form.dtype)
            check_headers(as_read, headers)
            warnings = (*warnings, *as_read.warnings)
    layers = tuple(
        _layer_report(task, factored, headers.get(task.placement), form)
        for task, factored in done
        if factored.norm > 0 or factored.rank > 0
    )
    failed |= failures
    return Compression(
        verb=verb,
        sources=tuple(sources),
        out=str(path),
        kind="kohya" if form.kohya else "peft",
        written=not destination.dry_run,
        dtype=form.dtype,
        rule=form.rule,
        layers=layers,
        unchanged=tuple(task.placement.name for task, factored in done if factored.norm == 0 and factored.rank == 0),
        left_out=dict(sorted(left_out.items())),
        carried={other.name: other.describe() for other in destination.carried},
        failures=dict(sorted(failed.items())),
        warnings=tuple(dict.fromkeys((*warnings, *_storage_warnings(layers, form), *_noise_warnings(done)))),
        totals=totals_of(layers, len(failed)),
        config=config,
    )


def _shared_out(
    budget: Budget, tasks: Sequence[Task], form: Form, executor: Executor | None, progress: Progress | None
) -> dict[str, int]:
    """Read every layer's spectrum, and give each layer its rank; one that cannot be read fails when it is factored."""
    if form.uniform:
        raise ValueError("uniform pads every layer to the largest rank of all, which no budget provides for: give one")
    sources = [Source(task.placement.name, task.update) for task in tasks]
    spectra, failures = layer_spectra(sources, executor=executor, progress=progress)
    ranks = budget.allocate(spectra).ranks if spectra else {}
    return ranks | dict.fromkeys(failures, 0)


def _write_layers(
    tasks: Sequence[Task],
    destination: Destination,
    rank: LayerRank | Mapping[str, int] | AboveNoise,
    weights: Path | None,
    executor: Executor | None,
    progress: Progress | None,
) -> tuple[list[tuple[Task, Factored]], dict[str, str]]:
    """Factor every layer, and write it to `weights` where that is given; what is returned holds no factors any more."""
    form = destination.form
    size = as_dtype(form.dtype).itemsize
    carried = sorted(destination.carried, key=lambda other: -_item_size(other.tensor))
    keys = [key for task in tasks for key in (*task.placement.keys, *(bias.tensor.key for bias in task.biases))]
    keys += [other.tensor.key for other in carried]
    forms = _forms(tasks, form)
    jobs = (_Job(task, rank_of(rank, task.placement.name), forms[task.placement]) for task in tasks)
    done: list[tuple[Task, Factored]] = []
    failures: dict[str, str] = {}
    metadata = destination.metadata if form.kohya else {"format": "pt"}
    with (
        nullcontext(None) if weights is None else stream_tensors(weights, keys, metadata) as stream,
        closing(map_in_order(_factor_or_reason, jobs, executor)) as results,
    ):
        _copy(stream, (other for other in carried if _item_size(other.tensor) >= size))
        for task, result in zip(tasks, results, strict=True):
            name = task.placement.name
            if isinstance(result, str):
                failures[name] = result
            else:
                if stream is not None and result.update is not None:
                    _add_layer(stream, task, result.update, form)
                done.append((task, replace(result, update=None)))
            if progress is not None:
                progress(name, len(done) + len(failures), len(tasks))
        _copy(stream, (other for other in carried if _item_size(other.tensor) < size))
        if stream is not None and form.kohya:
            stream.metadata.update(kohya_dimensions(_headers(done, form).values()))
    return done, failures


class _Job(NamedTuple):
    """One layer, and how it is truncated and stored: all that a worker needs."""

    task: Task
    rank: LayerRank | AboveNoise
    form: Form


def _factor_or_reason(job: _Job) -> Factored | str:
    """Read a layer and factor it, or say why that cannot be done; the other layers go on."""
    try:
        if isinstance(job.rank, AboveNoise):
            update, noise = _with_noise(job.task)
            return replace(factor(update, job.rank.rule(noise), job.form, at_least=job.task.at_least), noise=noise)
        return factor(job.task.update(), job.rank, job.form, at_least=job.task.at_least)
    except ValueError as error:
        return str(error)
    except MemoryError as error:
        return f"needs more memory than there is ({error})"


def _with_noise(task: Task) -> tuple[NDArray[Any], RoundingNoise]:
    if task.update_and_noise is None:
        raise ValueError("what storing has added is known of the difference of two checkpoints, and not of an adapter")
    return task.update_and_noise()


def _forms(tasks: Sequence[Task], form: Form) -> dict[Placement, Form]:
    """Give each layer its form: the scale 1 to layers whose rank and alpha PEFT's configuration cannot tell apart."""
    members = Counter(task.placement.module for task in tasks)
    unit = Form(dtype=form.dtype, uniform=True, kohya=form.kohya)
    return {task.placement: form if members[task.placement.module] == 1 else unit for task in tasks}


def _add_layer(stream: TensorStream, task: Task, update: LowRankUpdate, form: Form) -> None:
    placement, dtype = task.placement, as_dtype(form.dtype)
    A, B = placement.arrange(update)
    stream.add(placement.A_key, A)
    stream.add(placement.B_key, B)
    if placement.alpha_key is not None:
        stream.add(placement.alpha_key, np.array(form.alpha_at(update.rank), dtype=dtype))
    for bias in task.biases:
        values = bias.tensor.read().astype(np.float64) * (bias.scaling / update.scaling)
        stream.add(bias.tensor.key, values.astype(dtype))


def _copy(stream: TensorStream | None, others: Iterable[OtherTensor]) -> None:
    if stream is not None:
        for other in others:
            stream.add(other.tensor.key, other.tensor.read())


def _item_size(tensor: StoredTensor) -> int:
    return as_dtype(tensor.dtype).itemsize


def _headers(done: Iterable[tuple[Task, Factored]], form: Form) -> dict[Placement, Header]:
    return headers_of({task.placement: factored for task, factored in done if factored.rank}, form)


def _config(headers: Mapping[Placement, Header], destination: Destination) -> dict[str, Any]:
    return peft_config(
        {placement.module: header.rank for placement, header in headers.items()},
        {placement.module: header.alpha for placement, header in headers.items()},
        use_rslora=destination.form.rule == "rslora",
        others=destination.modules,
        settings=destination.settings,
    )


def _pad_file(weights: Path, headers: Mapping[Placement, Header], form: Form) -> None:
    """Write the file again with its factors padded, one layer at a time: the ranks are known only at the end."""
    unpadded = weights.with_name(f"{weights.name}.unpadded")
    weights.replace(unpadded)
    tensors, metadata = open_file(unpadded)
    first = {placement.A_key: placement for placement in headers}
    rest = {key for placement in headers for key in placement.keys[1:]}
    try:
        with stream_tensors(weights, tensors, metadata) as stream:
            for key in sorted(tensors.keys() - rest, key=lambda key: (-_item_size(tensors[key]), key)):
                if key not in first:
                    stream.add(key, tensors[key].read())
                    continue
                placement = first[key]
                header = headers[placement]
                A, B = pad_rank(tensors[key].read(), tensors[placement.B_key].read(), header.rank)
                stream.add(placement.A_key, A)
                stream.add(placement.B_key, B)
                if placement.alpha_key is not None:
                    stream.add(placement.alpha_key, np.array(header.alpha, dtype=as_dtype(form.dtype)))
    finally:
        unpadded.unlink()


def _layer_report(task: Task, factored: Factored, header: Header | None, form: Form) -> LayerCompression:
    stored_rank = 0 if header is None else header.rank
    parameters = stored_rank * sum(task.shape)
    return LayerCompression(
        name=task.placement.name,
        shape=task.shape,
        dtype=task.dtype,
        rank=factored.rank,
        asked=factored.asked,
        stored_rank=stored_rank,
        alpha=None if header is None else header.alpha,
        scaling=None if header is None else header.scaling,
        norm=factored.norm,
        singular_values=factored.singular_values,
        variance_captured=factored.variance_captured,
        best_error=factored.best_error,
        error=factored.error,
        storage_error=factored.storage_error,
        source_parameters=task.source_parameters,
        source_bytes=task.source_bytes,
        parameters=parameters,
        bytes=parameters * as_dtype(form.dtype).itemsize,
    )


def _storage_warnings(layers: Sequence[LayerCompression], form: Form) -> tuple[str, ...]:
    # Rounding each entry within u = eps/2 moves the product by 2u·√(σ₁·Σσ) at most, which is within
    # eps·r^¼·‖Δ_r‖. More than that is a factor with entries below the smallest normal number of its dtype.
    # Twice that, and no less than what the float64 of the measurement itself loses.
    bound = 2 * max(FLOATS[form.dtype].eps, 1e-14)
    narrow = [layer for layer in layers if layer.storage_error > bound * layer.rank**0.25]
    if not narrow:
        return ()
    worst = max(narrow, key=lambda layer: layer.storage_error)
    warning = (
        f"{form.dtype} is too narrow for the factors of {len(narrow)} of {len(layers)} layers: of {worst.name!r} it "
        f"loses {worst.storage_error:.2g} of the norm to numbers too small for it. Store them in "
        f"{wider_than(form.dtype)}"
    )
    return (warning,)


def _noise_warnings(done: Sequence[tuple[Task, Factored]]) -> tuple[str, ...]:
    vague = [(task, factored.noise) for task, factored in done if factored.noise and not factored.noise.applies]
    if not vague:
        return ()
    task, noise = max(vague, key=lambda one: one[1].unchanged)
    warning = (
        f"rounding and update cannot be told apart in {len(vague)} of {len(done)} layers: most entries of them changed "
        f"by less than a step of the stored numbers ({noise.unchanged:.0%} of {task.placement.name!r} not at all), so "
        "that what is kept of them may be neither. Take weights stored in float32, or a rank of your own"
    )
    return (warning,)


def _nothing_kept(sources: Sequence[str], tasks: int, failures: Mapping[str, str]) -> str:
    of = " and ".join(repr(source) for source in sources)
    if failures:
        name, reason = next(iter(failures.items()))
        return f"no layer of {of} could be compressed; the first of {len(failures)}, {name}: {reason}"
    return f"nothing to write: none of the {tasks} layers of {of} keeps a component, and an adapter needs one"
