"""Resize an adapter: a smaller one of the same update, through its factors alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from os import PathLike
from typing import Unpack, overload

from lowrank_core.models.executors import Progress
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.outputs import ResizeOptions
from lowrank_core.models.operations.rank_choice import Rank, keep_all
from lowrank_core.models.operations.rank_words import choose_rank
from lowrank_core.models.operations.rewriting import rewrite
from lowrank_core.models.sources import Source


@overload
def resize(
    adapter: Source,
    out: str | PathLike[str] | None = None,
    *,
    rank: Rank | None = None,
    **options: Unpack[ResizeOptions],
) -> Compression: ...


@overload
def resize(
    adapter: Source,
    out: str | PathLike[str] | None = None,
    *,
    rank: Sequence[int],
    **options: Unpack[ResizeOptions],
) -> list[Compression]: ...


def resize(
    adapter: Source,
    out: str | PathLike[str] | None = None,
    *,
    rank: Rank | Sequence[int] | None = None,
    variance: float | None = None,
    error: float | None = None,
    ratio: float | None = None,
    parameters: int | None = None,
    megabytes: float | None = None,
    objective: str | None = None,
    max_rank: int | None = None,
    format: str | None = None,  # noqa: A002 - the name that users give it
    base: Source | None = None,
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
) -> Compression | list[Compression]:
    """Write the best adapter of a smaller rank, in its own format or another.

    Parameters
    ----------
    adapter : path-like, model, mapping or Adapter
        An adapter's folder or file, in any format that :func:`~lowrank_core.models.open_adapter` reads; or one in
        memory, as it takes them.
    out : path-like, optional
        What to write: in the adapter's own format, if that is what a name with this ending has; else a kohya file where
        it ends in .safetensors, and a PEFT folder where it has no such ending. None: nothing, and the new adapter is in
        the report, in its own format or that named by `format`.
    rank : int, sequence of int, callable, mapping or Budget, optional
        How many components to keep in each layer, clamped to what it has; or a function of the layer's Spectrum; or a
        number for each layer by its name; or a :class:`~lowrank_core.models.Budget` to be divided among them. A
        sequence of numbers writes an adapter for each, as in :func:`~lowrank_core.models.extract`.
    variance, error, ratio, parameters, megabytes, objective, max_rank
        What chooses the ranks instead, as in :func:`~lowrank_core.models.extract`. Without any, all is kept.
    format : str, optional
        The name of another format, as "peft", "kohya" or "diffusers".
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
    Compression, or list of Compression
        What was kept and lost, by layer and in total; of several ranks, a report for each in increasing order.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        If the adapter is damaged, its initialisation altered the base, kohya's names cannot be turned into PEFT's, an
        option is not valid, or no layer keeps anything. A single bad layer is a failure in the result.

    See Also
    --------
    convert : Write the same adapter in another format, dtype or scaling rule, without decomposing it.
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
    words = {"variance": variance, "error": error, "ratio": ratio, "parameters": parameters, "megabytes": megabytes}
    rank = choose_rank({"rank": rank, **words, "objective": objective, "max_rank": max_rank})
    reports = rewrite(
        "resize",
        adapter,
        out,
        keep_all if rank is None else rank,
        format=format,
        base=base,
        base_restored=base_restored,
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
    return reports if isinstance(rank, Sequence) else reports[0]
