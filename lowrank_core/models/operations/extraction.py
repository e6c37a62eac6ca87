"""Extract an adapter from two checkpoints: the best update of each layer at a rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack, overload

from lowrank_core._validation import as_tolerance
from lowrank_core.models.executors import Progress
from lowrank_core.models.files.atomic import check_replaceable
from lowrank_core.models.files.checkpoints import Checkpoint, open_checkpoint
from lowrank_core.models.formats import format_of_output, is_adapter
from lowrank_core.models.formats.format import Kept
from lowrank_core.models.formats.peft_experts import is_separate_expert
from lowrank_core.models.module_names import check_patterns, select
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.extraction_tasks import PlacedWeights, place_weights
from lowrank_core.models.operations.factoring import FactorEncoding
from lowrank_core.models.operations.model_config import base_settings, orientation_of
from lowrank_core.models.operations.outputs import ExtractOptions, outputs_at
from lowrank_core.models.operations.pipeline import compress
from lowrank_core.models.operations.rank_choice import AboveNoise, Rank
from lowrank_core.models.operations.rank_words import choose_rank
from lowrank_core.models.operations.rewriting import rewrite
from lowrank_core.models.operations.tasks import Destination
from lowrank_core.models.pairing.pairs import CheckpointPair, pair_checkpoints
from lowrank_core.models.sources import Source, names_of


@overload
def extract(
    base: Source,
    tuned: Source,
    out: str | PathLike[str] | None = None,
    *,
    rank: Rank | None = None,
    **options: Unpack[ExtractOptions],
) -> Compression: ...


@overload
def extract(
    base: Source,
    tuned: Source,
    out: str | PathLike[str] | None = None,
    *,
    rank: Sequence[int],
    **options: Unpack[ExtractOptions],
) -> list[Compression]: ...


def extract(
    base: Source,
    tuned: Source,
    out: str | PathLike[str] | None = None,
    *,
    rank: Rank | Sequence[int] | None = None,
    variance: float | None = None,
    error: float | None = None,
    ratio: float | None = None,
    parameters: int | None = None,
    megabytes: float | None = None,
    above_noise: bool = False,
    sides: int | None = None,
    objective: str | None = None,
    max_rank: int | None = None,
    tolerance: float | None = None,
    format: str | None = None,  # noqa: A002 - the name that users give it
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    transposed: Sequence[str] | None = None,
    match: Mapping[str, str] | None = None,
    names: str = "base",
    component: str | None = None,
    prefix: str | None = None,
    alpha: float | None = None,
    rule: str = "standard",
    dtype: str = "float32",
    uniform: bool = False,
    force: bool = False,
    dry_run: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Compression | list[Compression]:
    """Extract a LoRA adapter from the difference of two checkpoints.

    Parameters
    ----------
    base, tuned : path-like, mapping, model, Checkpoint or Adapter
        Before and after training: safetensors files, sharded or not, or their folders; or in memory, as
        :func:`~lowrank_core.models.open_checkpoint` takes weights. `tuned` may be an adapter, whose updates are then
        truncated as they are on this base: DoRA, GLoRA, OFT, BOFT and IA3 become LoRA.
    out : path-like, optional
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder. None: nothing, and the
        adapter is in the report, as PEFT's unless `format` names another.
    rank : int, sequence of int, callable, mapping, Budget or AboveNoise, optional
        How many components to keep in each layer, clamped to min(m, n); or a function of the layer's Spectrum; or a
        number for each layer by its name. A sequence of numbers writes an adapter for each from one decomposition of
        each layer, "style-r8.safetensors" for rank 8 of an `out` "style.safetensors"; where only the leading part of a
        large layer is computed, that of the largest. This or one of the next six chooses the ranks.
    variance, error, ratio : float, optional
        Keep the fewest components with this fraction of a layer's variance, as 0.95, or with at most this relative
        error; or those with σᵢ ≥ ratio·σ₁.
    parameters, megabytes : int, float, optional
        Spend at most so many parameters on all layers together, or 10⁶ bytes on the file, where they keep the most
        variance. The spectra are read first. As in :class:`~lowrank_core.models.Budget`.
    above_noise, sides : bool, int, optional
        Keep what is above the rounding of the stored weights: of the tuned alone (1), or of both (2). As in
        :class:`~lowrank_core.models.AboveNoise`.
    objective : {"relative", "absolute", "base"}, optional
        Which variance a budget keeps.
    max_rank : int, optional
        The largest rank of any layer, whatever chooses it.
    tolerance : float, optional
        How much of the energy beyond a fixed rank the best update of a large layer may miss, as a fraction of it; None
        is 1e-6, or 1e-12 for differences in float64, and 0 decomposes every layer in full. As in
        :func:`~lowrank_core.truncate`.
    format : str, optional
        The name of a format, where that is not what `out` asks for, as "diffusers".
    include, exclude : sequence of str
        Patterns on module names (``*``, ``?``, ``[...]``), each for a whole name or its end after a dot.
    embeddings : sequence of str
        Patterns of modules to extract as embeddings, which are left out otherwise.
    transposed : sequence of str, optional
        Patterns of modules whose weights are stored as (in, out). None: what config.json beside the checkpoint says of
        its model type (GPT-2 and similar).
    match : mapping of str to str, optional
        Beginnings of names of `base`, with those that stand for them in `tuned`, where names alone leave that open.
    names : {"base", "tuned"}
        The checkpoint that modules are named by; a stack of experts is named as the stack, whichever has it.
    component : str, optional
        The component of two pipelines of diffusers, as "transformer". None: all that differ.
    prefix : str, optional
        What module names begin with in the model that the adapter is for, as "transformer" where the checkpoint has
        "h.0.…" and the model "transformer.h.0.…"; in a kohya file what keys begin with, "lora_unet" by default, and in
        one of diffusers the component, "transformer" by default where there are none.
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
    executor, progress
        As in :func:`~lowrank_core.models.inspect`. A `rank` that is a function has to be picklable for processes, which
        a lambda is not.

    Returns
    -------
    Compression, or list of Compression
        What was kept and lost, by layer and in total; of several ranks, a report for each in increasing order.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        If a checkpoint is damaged, an option is not valid, a pattern matches nothing, or no layer keeps anything. A
        single bad layer is a failure in the result.

    See Also
    --------
    resize : Write a smaller adapter of the same update.
    plan : Choose a rank for each layer within a budget.

    Notes
    -----
    One layer is in memory at a time, read, decomposed once (for a budget, once more before), written and measured.
    Each component's size is divided equally between the factors: √Σ in both.

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211: no factors of that rank have a smaller error.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import extract, open_adapter
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
    words: dict[str, Any] = {
        "variance": variance,
        "error": error,
        "ratio": ratio,
        "parameters": parameters,
        "megabytes": megabytes,
    }
    words |= {"above_noise": above_noise, "sides": sides, "objective": objective, "max_rank": max_rank}
    rank = choose_rank({"rank": rank, **words}, required=True)
    tolerance = as_tolerance(tolerance)
    if is_adapter(tuned):
        _check_options_of_adapters(rank, embeddings, transposed, match, names, component)
        rewritten = rewrite(
            "extract",
            tuned,
            out,
            rank,
            format=format,
            base=base,
            on_base=True,
            base_restored=False,
            include=include,
            exclude=exclude,
            prefix=prefix,
            alpha=alpha,
            rule=rule,
            dtype=dtype,
            uniform=uniform,
            tolerance=tolerance,
            force=force,
            dry_run=dry_run,
            executor=executor,
            progress=progress,
        )
        return rewritten if isinstance(rank, Sequence) else rewritten[0]
    pair = pair_checkpoints(
        *(open_checkpoint(path, component=component) for path in (base, tuned)),
        match=match,
        names=names,
    )
    target = format_of_output(out, name=format)
    if prefix is None and target.names_components:
        prefix = "" if pair.base.components else component
    encoding = FactorEncoding(dtype, alpha, rule, uniform, target.scale)
    outputs = outputs_at(out, rank, target)
    for path in outputs:
        _check_not_an_input(path, pair.base, pair.tuned)
        if not (dry_run or out is None):
            check_replaceable(path, target.files or None, force=force)
    layers = {layer.name: layer for layer in pair.layers}
    known = sorted(layers.keys() | pair.unpaired.keys())
    check_patterns("embedding", embeddings, known)
    check_patterns("transposed", transposed or (), known)
    chosen = select(known, include, exclude)
    orientation = orientation_of(pair, known, transposed)
    plan = place_weights(pair, chosen, embeddings, orientation, target, prefix)
    modules = sorted(pair.module_names)
    # PEFT stacks experts only where all of them have factors: of zeros, where one did not change.
    tasks = [
        replace(task, min_rank=int(uniform and is_separate_expert(task.name)), tolerance=tolerance)
        for task in plan.tasks
    ]
    reports = compress(
        "extract",
        names_of((base, tuned)),
        tasks,
        Destination(
            outputs,
            target,
            encoding,
            dry_run,
            Kept(
                base_settings(pair, base, plan.tasks),
                modules=tuple(f"{prefix}.{module}" if prefix else module for module in modules),
            ),
            in_memory=out is None,
        ),
        skipped={name: change.description for name, change in plan.skipped.items()},
        failures=plan.failures,
        warnings=(*pair.warnings, *orientation.warnings),
        executor=executor,
        progress=progress,
    )
    # What the user left out is not missing.
    reports = [_compared(report, pair, plan, layers.keys() - set(chosen)) for report in reports]
    return reports if isinstance(rank, Sequence) else reports[0]


def _compared(report: Compression, pair: CheckpointPair, plan: PlacedWeights, excluded: Collection[str]) -> Compression:
    """Return a report with the fraction of both checkpoints' differences that is in its layers."""
    # What is skipped is counted as such.
    elsewhere = {*report.unchanged, *plan.unchanged, *plan.skipped, *excluded}
    beside = [change for name, change in plan.skipped.items() if name not in pair.unpaired]
    return replace(
        report,
        complete=not report.failures and all(change.is_vector for change in plan.skipped.values()),
        compared_fraction=pair.fraction_in({layer.name for layer in report.layers}, elsewhere, beside),
        alignment=pair.alignment,
    )


def _check_options_of_adapters(
    rank: Rank | Sequence[int] | None,
    embeddings: Collection[str],
    transposed: Collection[str] | None,
    match: Mapping[str, str] | None,
    names: str,
    component: str | None,
) -> None:
    given = {
        "a rank above the rounding noise (--above-noise)": isinstance(rank, AboveNoise),
        "embeddings (--embedding)": bool(embeddings),
        "transposed modules (--transposed)": bool(transposed),
        "a match of names (--match)": bool(match),
        "the tuned checkpoint's names (--names)": names == "tuned",
        "a component (--component)": component is not None,
    }
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option} cannot be given for an adapter: it is for the difference of two checkpoints")


def _check_not_an_input(out: Path, *checkpoints: Checkpoint) -> None:
    tensors = (tensor for checkpoint in checkpoints for tensor in checkpoint.tensors.values())
    inputs = {tensor.file.resolve() for tensor in tensors if tensor.memory is None}
    if out.resolve() in inputs:
        raise FileExistsError(f"{str(out)!r} is one of the checkpoints: an adapter is never written over its own input")
