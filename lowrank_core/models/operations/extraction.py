"""Extract an adapter from two checkpoints: the best update of each layer at a rank."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from os import PathLike
from pathlib import Path
from typing import Any

from lowrank_core.models.executors import Progress, path_for
from lowrank_core.models.files.atomic import check_replaceable
from lowrank_core.models.files.checkpoints import Checkpoint, module_name, open_checkpoint
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import describe_shape
from lowrank_core.models.formats import Format, format_of_output, is_adapter
from lowrank_core.models.formats.format import Kept
from lowrank_core.models.module_names import CONV1D_TYPES, check_patterns, is_conv1d, is_embedding, matches, select
from lowrank_core.models.norms import frobenius_norm
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.factoring import FactorEncoding
from lowrank_core.models.operations.pipeline import Destination, Task, compress
from lowrank_core.models.operations.placing import no_embeddings
from lowrank_core.models.operations.rank_choice import AboveNoise, Rank
from lowrank_core.models.operations.rewriting import rewrite
from lowrank_core.models.pairing.pairs import WeightPair, pair_checkpoints

_NOT_REQUESTED = "an embedding, which is extracted only when asked for (--embedding)"
_CONFIG = "config.json"
# How transformers' names of models end, and PEFT's names of their tasks.
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_NO_MODULE = "a parameter of its own and no module's weight, which an adapter cannot target"


def extract(
    base: str | PathLike[str],
    tuned: str | PathLike[str],
    out: str | PathLike[str],
    *,
    rank: Rank,
    format: str | None = None,  # noqa: A002 - the name that users give it
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
    """Extract a LoRA adapter from the difference of two checkpoints.

    Parameters
    ----------
    base, tuned : path-like
        Before and after training: safetensors files, sharded or not, or their folders. `tuned` may be an adapter, whose
        updates are then truncated as they are on this base: DoRA, GLoRA, OFT, BOFT and IA3 become LoRA.
    out : path-like
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder.
    rank : int, callable, mapping, Budget or AboveNoise
        How many components to keep in each layer, clamped to min(m, n); or a function of the layer's Spectrum, as
        ``lambda s: rank_for_variance(s, 0.95)``; or a number for each layer by its name. A
        :class:`~lowrank_core.models.Budget` is divided among the layers, whose spectra are read first; with
        :class:`~lowrank_core.models.AboveNoise` each keeps what is above the rounding of its weights.
    format : str, optional
        The name of a format, where that is not what `out` asks for, as "diffusers".
    include, exclude : sequence of str
        Patterns on module names (``*``, ``?``, ``[...]``), each for a whole name or its end after a dot.
    embeddings : sequence of str
        Patterns of modules to extract as embeddings, which are left out otherwise.
    transposed : sequence of str, optional
        Patterns of modules whose weights are stored as (in, out). None: what config.json beside the checkpoint says of
        its model type (GPT-2 and similar).
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
    executor, progress
        As in :func:`~lowrank_core.models.inspect`. A `rank` that is a function has to be picklable for processes, which
        a lambda is not.

    Returns
    -------
    Compression
        What was kept and lost, by layer and in total.

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
    if is_adapter(path_for(tuned, executor)):
        _check_options_of_adapters(rank, embeddings, transposed)
        return rewrite(
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
            force=force,
            dry_run=dry_run,
            executor=executor,
            progress=progress,
        )
    out = Path(out)
    pair = pair_checkpoints(open_checkpoint(path_for(base, executor)), open_checkpoint(path_for(tuned, executor)))
    _check_not_an_input(out, pair.base, pair.tuned)
    target = format_of_output(out, name=format)
    encoding = FactorEncoding(dtype, alpha, rule, uniform, target.scale)
    if not dry_run:
        check_replaceable(out, target.files or None, force=force)
    layers = {layer.name: layer for layer in pair.layers}
    names = sorted(layers.keys() | pair.unsupported.keys())
    check_patterns("embedding", embeddings, names)
    check_patterns("transposed", transposed or (), names)
    module_names = {module_name(key) for key in pair.base.tensors if key.endswith(".weight")}
    as_conv1d, warnings = _stored_transposed(pair.tuned, pair.base, names, transposed)
    tasks: list[Task] = []
    skipped: dict[str, str] = {}
    failures: dict[str, str] = {}
    for name in select(names, include, exclude):
        embedding = matches(name, embeddings)
        reason = skip_reason(name, module_names, embedding=embedding, target=target)
        if name in pair.unsupported:
            (skipped if reason else failures)[name] = pair.unsupported[name]
        elif reason:
            skipped |= _describe_skipped(layers[name], reason)
        else:
            layer = layers[name]
            is_transposed = embedding or (name in as_conv1d and len(layer.tuned.shape) == 2)
            dims = layer.shape[::-1] if is_transposed else layer.tuned.shape
            task = Task(
                placement=target.placement(name, dims, prefix, embedding),
                shape=layer.shape,
                dtype=layer.dtype,
                tensors=(layer.tuned,),
                update=layer.update,
                transposed=is_transposed,
                update_and_noise=layer.update_and_noise,
            )
            tasks.append(task)
    settings = {
        "base_model_name_or_path": str(_model_of(Path(base))),
        "task_type": _task_type(pair.tuned, pair.base),
        "fan_in_fan_out": any(task.transposed and not task.placement.embedding for task in tasks),
    }
    modules = tuple(f"{prefix}.{module}" if prefix else module for module in sorted(module_names))
    return compress(
        "extract",
        (str(base), str(tuned)),
        tasks,
        Destination(out, target, encoding, dry_run, Kept(settings, modules=modules)),
        rank,
        skipped=skipped | dict(pair.other_changes()),
        failures=failures,
        warnings=warnings,
        executor=executor,
        progress=progress,
    )


def _check_options_of_adapters(rank: Rank, embeddings: Collection[str], transposed: Collection[str] | None) -> None:
    given = {
        "a rank above the rounding noise (--above-noise)": isinstance(rank, AboveNoise),
        "embeddings (--embedding)": bool(embeddings),
        "transposed modules (--transposed)": bool(transposed),
    }
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option} cannot be given for an adapter: it is for the difference of two checkpoints")


def _stored_transposed(
    tuned: Checkpoint, base: Checkpoint, names: Sequence[str], patterns: Sequence[str] | None
) -> tuple[set[str], tuple[str, ...]]:
    """Return the modules whose weights are stored as (in, out), and a warning where that is only a guess."""
    if patterns is not None:
        return {name for name in names if matches(name, patterns)}, ()
    alike = {name for name in names if is_conv1d(name)}
    model_types: list[Any] = [config.get("model_type") for config in _configurations(tuned, base)]
    if any(kind in CONV1D_TYPES for kind in model_types):
        return alike, ()
    if model_types or not alike:
        return set(), ()
    warning = (
        f"{len(alike)} modules are named as GPT-2's Conv1D, as {min(alike)!r}, and no config.json says whether they "
        "are: they were taken as linear layers, stored as (out, in). If they are stored as (in, out), give their names "
        "(--transposed)"
    )
    return set(), (warning,)


def _model_of(base: Path) -> Path:
    """Return what transformers loads a checkpoint by: its folder, where its configuration is there."""
    return base.parent if base.is_file() and (base.parent / _CONFIG).is_file() else base


def _task_type(tuned: Checkpoint, base: Checkpoint) -> str | None:
    """Return PEFT's name for the task of a model, where its architecture decides that; AutoPeftModel… asks for it."""
    for config in _configurations(tuned, base):
        architectures = config.get("architectures")
        for name in architectures if isinstance(architectures, list) else ():
            task = next((task for end, task in _TASKS.items() if str(name).endswith(end)), None)
            if task or (str(name).endswith("ForConditionalGeneration") and config.get("is_encoder_decoder") is True):
                return task or "SEQ_2_SEQ_LM"
    return None


def _configurations(*checkpoints: Checkpoint) -> list[dict[str, Any]]:
    paths = [checkpoint.path.parent / _CONFIG for checkpoint in checkpoints]
    return [read_json(path) for path in paths if path.is_file()]


def skip_reason(
    name: str, module_names: Collection[str], *, embedding: bool = False, target: Format | None = None
) -> str:
    """Return why an adapter skips a weight, asked for as an embedding or not; empty if it takes part."""
    if name not in module_names:
        return _NO_MODULE
    if embedding:
        return "" if target is None or target.embeddings else no_embeddings(target)
    return _NOT_REQUESTED if is_embedding(name) else ""


def _describe_skipped(layer: WeightPair, reason: str) -> dict[str, str]:
    """Return a layer that changed and is skipped, with the norm of its change; nothing if it did not change."""
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
