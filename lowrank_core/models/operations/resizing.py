"""Resize an adapter: a smaller one of the same update, through its factors alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from os import PathLike
from pathlib import Path

from lowrank_core.models.executors import Progress, path_for
from lowrank_core.models.files.atomic import check_replaceable
from lowrank_core.models.formats import OtherTensor, format_of_output, open_adapter
from lowrank_core.models.formats.format import Kept
from lowrank_core.models.module_names import select
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.factoring import FactorEncoding, finest_dtype
from lowrank_core.models.operations.pipeline import Destination, Task, compress
from lowrank_core.models.operations.placing import check_base, check_no_magnitudes, place_layers
from lowrank_core.models.operations.rank_choice import Rank, keep_all


def resize(
    adapter: str | PathLike[str],
    out: str | PathLike[str],
    *,
    rank: Rank | None = None,
    base: str | PathLike[str] | None = None,
    base_restored: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prefix: str | None = None,
    alpha: float | None = None,
    rule: str | None = None,
    dtype: str | None = None,
    uniform: bool = False,
    force: bool = False,
    dry_run: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Compression:
    """Write the best adapter of a smaller rank, or the same one in another format, dtype or scaling rule.

    Parameters
    ----------
    adapter : path-like
        A PEFT adapter's folder or a kohya file.
    out : path-like
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder.
    rank : int, callable, mapping or Budget, optional
        How many components to keep in each layer, clamped to what it has; or a function of the layer's Spectrum; or a
        number for each layer by its name; or a :class:`~lowrank_core.models.Budget` to be divided among them. None
        keeps all.
    base : path-like, optional
        The base model's checkpoint, whose module names turn kohya's names into PEFT's.
    base_restored : bool
        That the base is again as it was before an initialisation such as PiSSA altered it, so that the factors alone
        are the update. Such an adapter is refused otherwise.
    include, exclude : sequence of str
        Patterns on module names, as in :func:`~lowrank_core.models.extract`; what they leave out is not in the new
        adapter.
    prefix : str, optional
        What keys begin with where a PEFT adapter becomes a kohya file, "lora_unet" by default.
    alpha, uniform, force, dry_run, executor, progress
        As in :func:`~lowrank_core.models.extract`.
    rule : {"standard", "rslora"}, optional
        The rule that the new adapter's scale follows; None: the adapter's own, and "standard" with `uniform`.
    dtype : str, optional
        What the factors are stored in; None: as they are.

    Returns
    -------
    Compression
        What was kept and lost, by layer and in total.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        If the adapter is damaged, its initialisation altered the base, kohya's names cannot be turned into PEFT's, an
        option is not valid, or no layer keeps anything. A single bad layer is a failure in the result.

    See Also
    --------
    extract : Make an adapter from two checkpoints.
    merge : Write the weighted sum of several adapters.

    Notes
    -----
    The product B·A is never formed: QR of both factors, and the SVD of their r × r core. Within one format every other
    tensor of the adapter (modules saved in full, biases, DoRA's magnitudes) is copied, so that the new adapter can take
    the place of the old.

    References
    ----------
    LoRA-Squeeze, arXiv:2602.10993, truncates through the same core.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import resize
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     old, new = pathlib.Path(folder, "old.safetensors"), pathlib.Path(folder, "new.safetensors")
    ...     save_file({"lora_unet_proj.lora_down.weight": np.eye(2, 6, dtype=np.float32),
    ...                "lora_unet_proj.lora_up.weight": np.diag([4, 3]).astype(np.float32)}, old)
    ...     layer = resize(old, new, rank=1).layers[0]
    >>> layer.rank, round(layer.variance_captured, 6), round(layer.error, 6)
    (1, 0.64, 0.6)
    """
    out = Path(out)
    opened = open_adapter(path_for(adapter, executor))
    if dtype is None:
        dtype = finest_dtype(tensor for layer in opened.layers for tensor in layer.tensors)
    if rule is None:
        # All layers of an adapter have one rule, and factors padded to one rank need none.
        rule = "standard" if uniform or not opened.layers else opened.layers[0].rule
    target = format_of_output(out, opened.format)
    encoding = FactorEncoding(dtype, alpha, rule, uniform, target.scale)
    if not dry_run:
        check_replaceable(out, target.files or None, force=force)
    same_format = target.name == opened.format
    check_base(opened, restored=base_restored)
    if not same_format:
        check_no_magnitudes(opened)
    names = sorted([*(layer.name for layer in opened.layers), *opened.unsupported])
    chosen = set(select(names, include, exclude))
    layers = [layer for layer in opened.layers if layer.name in chosen]
    same = {layer.placement.format for layer in layers} if same_format else {target.name}
    placed = place_layers(layers, target, same=same, prefix=prefix, base=base)
    others = [other for other in opened.others if other.tensor.is_readable] if same_format else []
    followers: dict[str, list[OtherTensor]] = {}
    for other in others:
        followers.setdefault(other.follows, []).append(other)
    tasks = [
        Task(
            placement=placed.placements[layer.name],
            shape=layer.shape,
            dtype=layer.dtype,
            tensors=layer.tensors,
            update=layer.untransposed_update,
            biases=tuple(other for other in followers.get(layer.name, []) if other.scaling is not None),
            min_rank=1 if layer.name in followers else 0,
        )
        for layer in layers
        if layer.name in placed.placements
    ]
    # Biases are rescaled with their layer, and tensors of a layer that was not chosen have no meaning without it.
    biases = {bias.tensor.key for task in tasks for bias in task.biases}
    dropped = {layer.name for layer in opened.layers} - chosen
    copied = tuple(other for other in others if other.tensor.key not in biases and other.follows not in dropped)
    kept = biases | {other.tensor.key for other in copied}
    destination = Destination(
        out,
        target,
        encoding,
        dry_run,
        Kept(
            settings=opened.settings or {"base_model_name_or_path": None if base is None else str(base)},
            metadata=opened.metadata if same_format else {},
            modules=tuple(layer.name for layer in opened.layers),
        ),
        copied=copied,
    )
    return compress(
        "resize",
        (str(adapter),),
        tasks,
        destination,
        keep_all if rank is None else rank,
        skipped=placed.skipped
        | {other.name: other.describe() for other in opened.others if other.tensor.key not in kept},
        failures=placed.failures | {name: reason for name, reason in opened.unsupported.items() if name in chosen},
        warnings=opened.inherited_warnings,
        executor=executor,
        progress=progress,
    )
