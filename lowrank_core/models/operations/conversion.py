"""Convert an adapter: the same factors in another format, dtype or scaling rule."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from os import PathLike

from lowrank_core.models.executors import Progress
from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.rewriting import rewrite
from lowrank_core.models.sources import Source


def convert(
    adapter: Source,
    out: str | PathLike[str] | None = None,
    *,
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
) -> Compression:
    """Write the same adapter in another format, dtype, alpha or scaling rule, and change nothing else.

    Parameters
    ----------
    adapter : path-like, model, mapping or Adapter
        An adapter, as :func:`~lowrank_core.models.open_adapter` takes it.
    out : path-like, optional
        What to write, or None for an adapter in the report. As in :func:`~lowrank_core.models.resize`, its ending
        chooses the format.
    format : str, optional
        The name of a format, as "peft", "kohya" or "diffusers".
    base, base_restored, include, exclude, prefix, uniform, force, dry_run, executor, progress
        As in :func:`~lowrank_core.models.resize`.
    alpha : float, optional
        The alpha of every layer; None: each layer's own, where the format has one for each layer.
    rule : {"standard", "rslora"}, optional
        The rule that the scale follows; None: the adapter's own.
    dtype : str, optional
        What the factors are stored in; None: as they are.

    Returns
    -------
    Compression
        What was written, by layer and in total, and what the format cannot hold.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If an input is missing, or the output is there.
    ValueError
        As :func:`~lowrank_core.models.resize`.

    See Also
    --------
    resize : Write a smaller adapter of the same update.

    Notes
    -----
    Factors are copied as they are where the format can say the scale that they had, and B is multiplied by what is
    missing where it cannot. Updates that are no product of two stored factors, as LoHa, LoKr and full differences, are
    factored at their full rank.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import load_file, save_file
    >>> from lowrank_core.models import convert
    >>> up = np.diag([4, 3]).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     old, new = pathlib.Path(folder, "old.safetensors"), pathlib.Path(folder, "new.safetensors")
    ...     save_file({"transformer.proj.lora_A.weight": np.eye(2, 6, dtype=np.float32),
    ...                "transformer.proj.lora_B.weight": up}, old)
    ...     layer = convert(old, new, format="kohya").layers[0]
    ...     written = load_file(new)
    >>> sorted(written), layer.alpha, bool(np.all(written["lora_unet_proj.lora_up.weight"] == up))
    (['lora_unet_proj.alpha', 'lora_unet_proj.lora_down.weight', 'lora_unet_proj.lora_up.weight'], 2.0, True)
    """
    (report,) = rewrite(
        "convert",
        adapter,
        out,
        None,
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
    return report
