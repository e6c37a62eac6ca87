"""Apply an adapter: the base model with its updates added, rounded once, written one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from lowrank_core._dtypes import WRITTEN_FLOATS, as_dtype
from lowrank_core.models.executors import Progress
from lowrank_core.models.files.atomic import check_replaceable, replacing
from lowrank_core.models.files.checkpoint_files import (
    CheckpointFiles,
    copy_beside,
    files_like,
    metadata_of,
    write_index,
)
from lowrank_core.models.files.checkpoints import Checkpoint
from lowrank_core.models.files.quantised import check_dequantised
from lowrank_core.models.files.streams import stream_tensors
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.format import SINGLE_FILE
from lowrank_core.models.formats.with_base import open_base, with_base
from lowrank_core.models.operations.changes import Change, Changes, changes_of
from lowrank_core.models.operations.placing import check_base
from lowrank_core.models.operations.weight_merging import Merged, RoundingLoss, combined, merge_change
from lowrank_core.models.sources import Source, names_of


@dataclass(frozen=True)
class AppliedLayer:
    """An update that was added to its weight.

    Attributes
    ----------
    name, shape : str, tuple of int
        The layer's name, or that of a bias, and the shape (m, n) of its update as a matrix.
    dtype, merged_dtype : str
        What the base's weight is stored in, and the merged one.
    rounding : RoundingLoss
        What rounding the sum lost of the update.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    merged_dtype: str
    rounding: RoundingLoss


@dataclass(frozen=True, kw_only=True)
class Application:
    """A model that was written, or would be, and what of the adapter is in it.

    Attributes
    ----------
    base, adapter, out : str
        Where each is.
    written : bool
        False for a dry run.
    complete : bool
        Whether all of the adapter is in the model.
    dtype : str or None
        The dtype that was asked for; None: each tensor's own.
    rounding : RoundingLoss
        All layers together.
    layers : tuple of AppliedLayer
        The updates, in the order in which they were added.
    replaced : dict of str to str
        Tensors of the adapter that took the place of the base's, or are new.
    copied : int
        Number of tensors that are as they are in the base.
    dequantised : tuple of str
        Those that were stored in a quantised type, and are written in what that was dequantised to.
    skipped, failures : dict of str to str
        Tensors of the adapter that were not applied, and layers that could not be, with the reason.
    files, skipped_files : tuple of str, dict of str to str
        What was written, and what beside the base's weights was not copied, with the reason.
    warnings : tuple of str
        What a user of the adapter should know.
    """

    base: str
    adapter: str
    out: str
    written: bool
    complete: bool
    dtype: str | None
    rounding: RoundingLoss
    layers: tuple[AppliedLayer, ...]
    replaced: dict[str, str]
    copied: int
    dequantised: tuple[str, ...]
    skipped: dict[str, str]
    failures: dict[str, str]
    files: tuple[str, ...]
    skipped_files: dict[str, str]
    warnings: tuple[str, ...]


def apply(
    base: Source,
    adapter: Source,
    out: str | PathLike[str],
    *,
    dtype: str | None = None,
    base_restored: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Application:
    r"""Write a base model with the updates of an adapter added to its weights.

    .. math:: W' = \mathrm{round}(W + \gamma B A)

    with the product and the sum in float64, rounded once.

    Parameters
    ----------
    base : path-like, mapping, model or Checkpoint
        The checkpoint that the adapter was trained from, as :func:`~lowrank_core.models.open_checkpoint` reads it.
    adapter : path-like, model, mapping or Adapter
        An adapter of any format that :func:`~lowrank_core.models.open_adapter` reads. Updates that depend on the base's
        weights (DoRA, GLoRA, OFT, BOFT, IA3) are made from them.
    out : path-like
        The folder to write, with the shards of the base, their index, and copies of the other files of its folder; or a
        file, where the base has one shard and the name ends in .safetensors.
    dtype : {"float32", "bfloat16", "float16", "float64"}, optional
        What the changed tensors are stored in; None: each as the base has it. All others are copied as they are.
    base_restored : bool
        The base is again as it was before an initialisation (PiSSA and similar) altered it.
    force : bool
        Replace what is at `out`.
    dry_run : bool
        Report without writing.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each tensor.

    Returns
    -------
    Application
        What was added, what rounding lost of it, and what could not be applied.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        If a file is damaged, an option is not valid, the base is a pipeline and not one of its components, the
        adapter's initialisation altered the base, or no layer of the adapter can be applied. A single bad layer is a
        failure in the result, and its weight is as it was.

    See Also
    --------
    verify : Check a merged model against its base and adapter.
    merge : The weighted sum of several adapters, as an adapter.

    Notes
    -----
    One tensor is in memory at a time. PEFT's ``merge_and_unload`` rounds more often: the product in float32, or in the
    dtype of the weights, then the scale, the update and the sum. As there, biases of ``lora_B`` are added to those of
    the base, and tensors that were saved in full (``modules_to_save``, trained biases) take the place of the base's.

    Of an update with entries below half a step of the stored weights, rounding returns the weight itself: such entries
    are lost, whatever does the merge. `RoundingLoss` says how many there are.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import load_file, save_file
    >>> from lowrank_core.models import apply
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, adapter, out = (pathlib.Path(folder, f"{name}.safetensors") for name in ("base", "lora", "out"))
    ...     save_file({"proj.weight": np.ones((2, 4), np.float16)}, base)
    ...     save_file({"transformer.proj.lora_A.weight": np.eye(1, 4, dtype=np.float32),
    ...                "transformer.proj.lora_B.weight": np.float32([[0.5], [1e-4]])}, adapter)
    ...     report = apply(base, adapter, out)
    ...     merged = load_file(out)["proj.weight"]
    >>> merged[:, 0], report.layers[0].rounding.unchanged, report.complete
    (array([1.5, 1. ], dtype=float16), 0.875, True)
    """
    out = Path(out)
    if dtype is not None and dtype not in WRITTEN_FLOATS:
        raise ValueError(f"unsupported dtype {dtype!r}: {', '.join(WRITTEN_FLOATS)} are written")
    names = names_of((base, adapter))
    checkpoint = open_base(base, adapter)
    _check_one_model(names[0], checkpoint)
    check_dequantised(checkpoint.path, checkpoint.tensors)
    opened = with_base(open_adapter(adapter), checkpoint)
    check_base(opened, restored=base_restored)
    changes = changes_of(opened, checkpoint)
    plan = _plan(out, checkpoint, changes, dtype)
    if not dry_run:
        check_replaceable(out, plan.files.names if plan.is_folder else None, force=force)
    with nullcontext(None) if dry_run else replacing(out, folder=plan.is_folder, size=plan.size) as temporary:
        layers, failures = _write_tensors(plan, temporary, progress)
        failures |= changes.failures
        if not layers and not changes.replaced:
            raise ValueError(_nothing_applied(names[1], failures))
        if temporary is not None and plan.is_folder:
            _write_beside(plan, temporary)
    return Application(
        base=names[0],
        adapter=names[1],
        out=str(out),
        written=not dry_run,
        complete=not failures and not changes.skipped,
        dtype=dtype,
        rounding=combined([layer.rounding for layer in layers]),
        layers=tuple(layers),
        replaced=dict(sorted(changes.replaced.items())),
        copied=len(checkpoint.tensors.keys() - changes.by_key.keys()),
        dequantised=plan.dequantised,
        skipped=dict(sorted(changes.skipped.items())),
        failures=dict(sorted(failures.items())),
        files=plan.files.names if plan.is_folder else (out.name,),
        skipped_files=plan.files.skipped,
        warnings=opened.inherited_warnings,
    )


def to_rows(report: Application) -> list[dict[str, Any]]:
    """Return a report as rows of a table with the same columns, one for each layer; None where there is no figure."""
    losses = [field.name for field in fields(RoundingLoss)]
    columns = dict.fromkeys(["name", "rows", "columns", "dtype", "merged_dtype", *losses, "failure"])
    done = [
        columns
        | {"name": layer.name, "rows": layer.shape[0], "columns": layer.shape[1]}
        | {"dtype": layer.dtype, "merged_dtype": layer.merged_dtype}
        | vars(layer.rounding)
        for layer in report.layers
    ]
    return done + [columns | {"name": name, "failure": reason} for name, reason in report.failures.items()]


@dataclass(frozen=True)
class _Plan:
    """What is written, and where."""

    base: Checkpoint
    changes: dict[str, Change]
    tensors: dict[str, StoredTensor]
    dtype: str | None
    files: CheckpointFiles
    is_folder: bool

    def dtype_of(self, key: str) -> str:
        """Return what a tensor is written in."""
        own = self.tensors[key].array_dtype
        return self.dtype or own if key in self.changes else own

    @property
    def size(self) -> int:
        """The bytes of all tensors that are written."""
        return sum(tensor.size * as_dtype(self.dtype_of(key)).itemsize for key, tensor in self.tensors.items())

    @property
    def dequantised(self) -> tuple[str, ...]:
        """Tensors of the base whose stored type is not that of the array that is read."""
        return tuple(key for key, tensor in self.base.tensors.items() if tensor.dtype != tensor.array_dtype)


def _plan(out: Path, base: Checkpoint, changes: Changes, dtype: str | None) -> _Plan:
    new = {key: change.weight for key, change in changes.by_key.items() if key not in base.tensors}
    files = files_like(base, new)
    is_folder = out.suffix != SINGLE_FILE
    if not is_folder:
        if len(files.shards) > 1:
            raise ValueError(
                f"{str(out)!r} is one file, and the base has {len(files.shards)} shards: give the name of a folder"
            )
        alone = dict.fromkeys((path.name for path in files.copied), f"{str(out)!r} is a single file")
        files = replace(files, copied=(), skipped=files.skipped | alone)
    _check_not_an_input(out, base)
    return _Plan(base, changes.by_key, base.tensors | new, dtype, files, is_folder)


def _check_one_model(name: str, base: Checkpoint) -> None:
    if base.components:
        raise ValueError(
            f"{name!r} is a pipeline of several models ({', '.join(base.components)}), and one is written at a time: "
            f"give the folder of one component, as {str(base.path.parent / base.components[0])!r}"
        )


def _check_not_an_input(out: Path, base: Checkpoint) -> None:
    inputs = {tensor.file.absolute() for tensor in base.tensors.values() if tensor.memory is None}
    taken = {path.resolve() for file in inputs for path in (file, file.parent)}
    if out.resolve() in taken:
        raise FileExistsError(f"{str(out)!r} is the base, or its folder: a model is never written over its own input")


def _write_tensors(
    plan: _Plan, temporary: Path | None, progress: Progress | None
) -> tuple[list[AppliedLayer], dict[str, str]]:
    """Write every tensor into its shard, where there is one to write; return the layers, and those that failed."""
    layers: list[AppliedLayer] = []
    failures: dict[str, str] = {}
    done = 0
    for shard, keys in plan.files.shards.items():
        path = temporary / shard if temporary is not None and plan.is_folder else temporary
        metadata = metadata_of(plan.base, shard)
        with nullcontext(None) if path is None else stream_tensors(path, keys, metadata) as stream:
            for key in sorted(keys, key=lambda key: (-as_dtype(plan.dtype_of(key)).itemsize, key)):
                if key in plan.changes:
                    merged = merge_change(plan.changes[key], plan.dtype_of(key))
                    layers += _applied(plan.changes[key], merged)
                    failures |= merged.failures
                    if stream is not None:
                        stream.add(key, merged.tensor)
                elif stream is not None:
                    stream.add(key, plan.tensors[key].read())
                done += 1
                if progress is not None:
                    progress(key, done, len(plan.tensors))
    return layers, failures


def _applied(change: Change, merged: Merged) -> Iterator[AppliedLayer]:
    for update in change.updates:
        if update.name in merged.losses:
            loss = merged.losses[update.name]
            yield AppliedLayer(update.name, update.shape, change.weight.dtype, merged.tensor.dtype.name, loss)


def _write_beside(plan: _Plan, folder: Path) -> None:
    """Write the index, and copy the files beside the base's weights."""
    if plan.files.index:
        weight_map = {key: shard for shard, keys in plan.files.shards.items() for key in keys}
        write_index(folder / plan.files.index, plan.base, weight_map, plan.size)
    copy_beside(plan.files, folder, dtype=plan.dtype, dequantised=bool(plan.dequantised))


def _nothing_applied(adapter: str, failures: Mapping[str, str]) -> str:
    if not failures:
        return f"{adapter!r} has no layer that could be applied"
    name, reason = next(iter(failures.items()))
    return f"no layer of {adapter!r} could be applied; the first of {len(failures)}, {name}: {reason}"
