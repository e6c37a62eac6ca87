"""Extract an adapter from two checkpoints: the best update of each layer that a rank can hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.models.executors import path_for
from lowrank_core.models.files.blocks import frobenius_norm
from lowrank_core.models.files.checkpoints import Checkpoint, WeightPair, module_name, open_checkpoint, pair_checkpoints
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import describe_shape
from lowrank_core.models.formats.placements import (
    DEFAULT_KOHYA_PREFIX,
    Placement,
    kohya_key,
    kohya_placement,
    peft_placement,
)
from lowrank_core.models.module_names import CONV1D_TYPES, check_patterns, is_conv1d, is_embedding, matches, select
from lowrank_core.models.operations.conversion import NO_EMBEDDINGS
from lowrank_core.models.operations.factoring import Form, Rank, stored_bytes
from lowrank_core.models.operations.pipeline import (
    Destination,
    Progress,
    Task,
    check_destination,
    compress,
    is_kohya_path,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from concurrent.futures import Executor
    from os import PathLike

    from lowrank_core.models.operations.compression import Compression

_NOT_ASKED = "an embedding, which is extracted only when asked for (--embedding)"
_NO_MODULE = "a parameter of its own and no module's weight, which an adapter cannot target"


def extract(
    base: str | PathLike[str],
    tuned: str | PathLike[str],
    out: str | PathLike[str],
    *,
    rank: Rank,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    transposed: Sequence[str] | None = None,
    prefix: str | None = None,
    alpha: float | None = None,
    rule: str = "standard",
    dtype: str = "float32",
    uniform: bool = False,
    force: bool = False,
    dry_run: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Compression:
    """
    Extract a LoRA adapter from the difference of two checkpoints.

    Parameters
    ----------
    base, tuned : path-like
        Before and after training: safetensors files, sharded or not, or the folders that hold them.
    out : path-like
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder.
    rank : int, callable, mapping, Budget or AboveNoise
        How many components to keep in each layer, clamped to min(m, n); or a function that gives it from the layer's
        Spectrum, as ``lambda s: rank_for_variance(s, 0.95)``; or a number for each layer by its name. A
        :class:`~lowrank_core.models.operations.budgets.Budget` is shared among the layers, whose spectra are read
        first; with :class:`~lowrank_core.models.operations.above_noise.AboveNoise` each keeps what stands above the
        rounding of its weights.
    include, exclude : sequence of str
        Patterns on module names (``*``, ``?``, ``[...]``), each holding for a whole name or its end after a dot.
    embeddings : sequence of str
        Patterns of modules to extract as embeddings, which are left out otherwise.
    transposed : sequence of str, optional
        Patterns of modules whose weights are stored as (in, out). None: what config.json beside the checkpoint says of
        its model type (GPT-2 and its kin).
    prefix : str, optional
        What module names begin with in the model that the adapter is for, as "transformer" where the checkpoint has
        "h.0.…" and the model "transformer.h.0.…"; in a kohya file what keys begin with, "lora_unet" by default.
    alpha : float, optional
        The alpha of every layer, 16 by default: the factors are scaled so that the product is right under any.
    rule : {"standard", "rslora"}
        The rule that the adapter's scale follows.
    dtype : {"float32", "bfloat16", "float16", "float64"}
        What the factors are stored in.
    uniform : bool
        Pad all layers with zeros to one rank r, with alpha = r: every reader then applies the scale 1.
    force : bool
        Replace what is at `out`.
    dry_run : bool
        Report without writing.
    executor : concurrent.futures.Executor, optional
        Where the layers are read and truncated, each a task of its own: threads, processes, or a Dask cluster's
        ``Client.get_executor()``. Its workers have to see the inputs under the same absolute paths; as many layers are
        in memory as it has workers. A `rank` that is a function has to be picklable for processes, which a lambda is
        not. None: here, one layer after the other.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after each layer.

    Returns
    -------
    Compression
        What was kept and lost, by layer and in total.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        If a checkpoint is damaged, an option is not one, a pattern matches nothing, or no layer keeps anything. A
        single bad layer is a failure in the result.

    Notes
    -----
    One layer is in memory at a time, read, decomposed once (for a budget, once more before), written and measured.
    Factors share each component's size: √Σ in both.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211: no factors of that rank are nearer.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models.formats import open_adapter
    >>> from lowrank_core.models.operations.extraction import extract
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, name) for name in ("base.safetensors", "tuned.safetensors", "adapter")]
    ...     save_file({"proj.weight": np.zeros((2, 2))}, paths[0])
    ...     save_file({"proj.weight": np.diag([4.0, 3.0])}, paths[1])
    ...     layer = extract(*paths, rank=1).layers[0]
    ...     written = open_adapter(paths[2]).layers[0].update().to_dense()
    >>> layer.rank, round(layer.best_error, 6), round(layer.error, 6)
    (1, 0.6, 0.6)
    >>> written.round(6)
    array([[4., 0.],
           [0., 0.]])
    """
    out = Path(out)
    kohya = is_kohya_path(out)
    form = Form(dtype=dtype, alpha=alpha, rule=rule, uniform=uniform, kohya=kohya)
    pair = pair_checkpoints(open_checkpoint(path_for(base, executor)), open_checkpoint(path_for(tuned, executor)))
    _check_not_an_input(out, pair.base, pair.tuned)
    check_destination(out, force=force, dry_run=dry_run)
    by_name = {layer.name: layer for layer in pair.layers}
    names = sorted(by_name.keys() | pair.mismatched.keys())
    check_patterns("embedding", embeddings, names)
    check_patterns("transposed", transposed or (), names)
    module_names = {module_name(key) for key in pair.base.tensors if key.endswith(".weight")}
    as_conv1d, warnings = _stored_transposed(pair.tuned, pair.base, names, transposed)
    tasks: list[Task] = []
    left_out: dict[str, str] = {}
    failures: dict[str, str] = {}
    for name in select(names, include, exclude):
        embedding = matches(name, embeddings)
        reason = why_left_out(name, module_names, embedding=embedding, kohya=kohya)
        if name in pair.mismatched:
            (left_out if reason else failures)[name] = pair.mismatched[name]
        elif reason:
            left_out |= _describe_left_out(by_name[name], reason)
        else:
            layer = by_name[name]
            turned = embedding or (name in as_conv1d and len(layer.tuned.shape) == 2)
            placement = _placement(name, layer, prefix, kohya=kohya, transposed=turned, embedding=embedding)
            size = layer.tuned.size, stored_bytes([layer.tuned])
            task = Task(placement, layer.shape, layer.dtype, *size, layer.update)
            tasks.append(replace(task, update_and_noise=layer.update_and_noise))
    fan_in_fan_out = any(task.placement.transposed and not task.placement.embedding for task in tasks)
    destination = Destination(
        path=out,
        form=form,
        force=force,
        dry_run=dry_run,
        settings={"base_model_name_or_path": str(base), "fan_in_fan_out": fan_in_fan_out},
        metadata={},
        modules=tuple(_prefixed(prefix, module) for module in sorted(module_names)),
    )
    return compress(
        "extract",
        (str(base), str(tuned)),
        tasks,
        destination,
        rank,
        left_out=left_out | dict(pair.other_changes()),
        failures=failures,
        warnings=warnings,
        executor=executor,
        progress=progress,
    )


def _placement(
    name: str, layer: WeightPair, prefix: str | None, *, kohya: bool, transposed: bool, embedding: bool
) -> Placement:
    kernel = layer.shape[:1] if transposed else layer.tuned.shape[1:]
    if kohya:
        key = kohya_key(DEFAULT_KOHYA_PREFIX if prefix is None else prefix, name)
        return kohya_placement(key, kernel, name, transposed=transposed)
    placed = peft_placement(_prefixed(prefix, name), kernel, transposed=transposed, embedding=embedding)
    return replace(placed, name=name)


def _prefixed(prefix: str | None, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _stored_transposed(
    tuned: Checkpoint, base: Checkpoint, names: Sequence[str], patterns: Sequence[str] | None
) -> tuple[set[str], tuple[str, ...]]:
    """Find the modules whose weights are stored as (in, out), and say where that is only a guess."""
    if patterns is not None:
        return {name for name in names if matches(name, patterns)}, ()
    alike = {name for name in names if is_conv1d(name)}
    configs = [checkpoint.path.parent / "config.json" for checkpoint in (tuned, base)]
    model_types: list[Any] = [read_json(config).get("model_type") for config in configs if config.is_file()]
    if any(kind in CONV1D_TYPES for kind in model_types):
        return alike, ()
    if alike and not model_types:
        warning = (
            f"{len(alike)} modules are named as GPT-2's Conv1D, as {min(alike)!r}, and no config.json says whether "
            "they are: they were taken as linear layers, stored as (out, in). If they are stored as (in, out), give "
            "their names (--transposed)"
        )
        return set(), (warning,)
    return set(), ()


def why_left_out(name: str, module_names: Collection[str], *, embedding: bool = False, kohya: bool = False) -> str:
    """
    Say why an adapter leaves a weight out.

    Parameters
    ----------
    name : str
        The weight's name, without ".weight".
    module_names : collection of str
        All modules of the model.
    embedding : bool
        Whether it was asked for as an embedding.
    kohya : bool
        Whether the adapter is a kohya file.

    Returns
    -------
    str
        The reason; empty if it takes part.
    """
    if name not in module_names:
        return _NO_MODULE
    if embedding:
        return NO_EMBEDDINGS if kohya else ""
    return _NOT_ASKED if is_embedding(name) else ""


def _describe_left_out(layer: WeightPair, reason: str) -> dict[str, str]:
    """Name a layer that changed and is not extracted, with the norm of its change; nothing if it did not change."""
    where = f"{describe_shape(layer.tuned.shape)}, {layer.dtype}"
    try:
        change = frobenius_norm(layer.update())
    except ValueError as error:
        return {layer.name: f"{reason}: {where}; {error}"}
    return {layer.name: f"{reason}: changed by norm {change:.4g}, {where}"} if change else {}


def _check_not_an_input(out: Path, *checkpoints: Checkpoint) -> None:
    inputs = {tensor.file.resolve() for checkpoint in checkpoints for tensor in checkpoint.tensors.values()}
    if out.resolve() in inputs:
        raise FileExistsError(f"{str(out)!r} is one of the checkpoints: an adapter is never written over its own input")
