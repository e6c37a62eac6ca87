"""Resize an adapter: a smaller one of the same update, through its factors alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.models.executors import path_for
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import open_file
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.peft import PEFT_CONFIG
from lowrank_core.models.formats.placements import module_key
from lowrank_core.models.module_names import select
from lowrank_core.models.operations.conversion import (
    check_base,
    check_no_magnitudes,
    finest_dtype,
    place_layers,
    product_of,
)
from lowrank_core.models.operations.factoring import Form, Rank, everything, stored_bytes
from lowrank_core.models.operations.pipeline import (
    Destination,
    Progress,
    Task,
    check_destination,
    compress,
    is_kohya_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor
    from os import PathLike

    from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, OtherTensor
    from lowrank_core.models.operations.compression import Compression


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
    """
    Write the best adapter of a smaller rank, or the same one in another format, dtype or scaling rule.

    Parameters
    ----------
    adapter : path-like
        A PEFT adapter's folder or a kohya file.
    out : path-like
        What to write: a kohya file where the name ends in .safetensors, else a PEFT folder.
    rank : int, callable, mapping or Budget, optional
        How many components to keep in each layer, clamped to what it has; or a function that gives it from the layer's
        Spectrum; or a number for each layer by its name; or a
        :class:`~lowrank_core.models.operations.budgets.Budget` to be shared among them. None keeps all.
    base : path-like, optional
        The base model's checkpoint, whose module names turn kohya's names into PEFT's.
    base_restored : bool
        That the base is again as it was before an initialisation such as PiSSA altered it, so that the factors alone
        are the update. Such an adapter is refused otherwise.
    include, exclude : sequence of str
        Patterns on module names, as in :func:`~lowrank_core.models.operations.extraction.extract`; what they leave
        out is not in the new adapter.
    prefix : str, optional
        What keys begin with where a PEFT adapter becomes a kohya file, "lora_unet" by default.
    alpha, uniform, force, dry_run, executor, progress
        As in :func:`~lowrank_core.models.operations.extraction.extract`.
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
        option is not one, or no layer keeps anything. A single bad layer is a failure in the result.

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
    >>> from lowrank_core.models.operations.resizing import resize
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     old, new = pathlib.Path(folder, "old.safetensors"), pathlib.Path(folder, "new.safetensors")
    ...     save_file({"lora_unet_proj.lora_down.weight": np.eye(2, 6, dtype=np.float32),
    ...                "lora_unet_proj.lora_up.weight": np.diag([4, 3]).astype(np.float32)}, old)
    ...     layer = resize(old, new, rank=1).layers[0]
    >>> layer.rank, round(layer.variance_captured, 6), round(layer.error, 6)
    (1, 0.64, 0.6)
    """
    out = Path(out)
    kohya = is_kohya_path(out)
    opened = open_adapter(path_for(adapter, executor))
    same_kind = kohya == (opened.kind == "kohya")
    form = Form(
        dtype=finest_dtype(opened.layers) if dtype is None else dtype,
        alpha=alpha,
        rule=_own_rule(opened, uniform=uniform) if rule is None else rule,
        uniform=uniform,
        kohya=kohya,
    )
    check_destination(out, force=force, dry_run=dry_run)
    check_base(opened, restored=base_restored)
    if not same_kind:
        check_no_magnitudes(opened)
    names = sorted([*(layer.name for layer in opened.layers), *opened.unsupported])
    chosen = set(select(names, include, exclude))
    layers = [layer for layer in opened.layers if layer.name in chosen]
    placements, left_out, failures = place_layers(layers, kohya=kohya, prefix=prefix, base=base)
    tasks = []
    for layer in layers:
        if layer.name in placements:
            followers = _followers(layer, opened.others) if same_kind else ()
            tasks.append(
                Task(
                    placement=placements[layer.name],
                    shape=layer.shape,
                    dtype=layer.dtype,
                    source_parameters=layer.parameters,
                    source_bytes=stored_bytes([layer.A, layer.B]),
                    update=partial(product_of, layer),
                    biases=tuple(other for other in followers if other.tensor.key.endswith(".lora_B.bias")),
                    at_least=1 if followers else 0,
                )
            )
    carried, more_left_out = _carried(opened, layers, tasks, same_kind=same_kind)
    destination = Destination(
        path=out,
        form=form,
        force=force,
        dry_run=dry_run,
        settings=_settings(opened, base),
        metadata=open_file(opened.path)[1] if kohya and same_kind else {},
        modules=tuple(layer.name for layer in opened.layers),
        carried=carried,
    )
    return compress(
        "resize",
        (str(adapter),),
        tasks,
        destination,
        everything if rank is None else rank,
        left_out=left_out | more_left_out,
        failures=failures | {name: reason for name, reason in opened.unsupported.items() if name in chosen},
        warnings=opened.doubts,
        executor=executor,
        progress=progress,
    )


def _own_rule(adapter: Adapter, *, uniform: bool) -> str:
    """Find the scaling rule of an adapter, which is one for all its layers; factors padded to one rank need none."""
    return "standard" if uniform else next((layer.rule for layer in adapter.layers), "standard")


def _followers(layer: AdapterLayer, others: Sequence[OtherTensor]) -> tuple[OtherTensor, ...]:
    """Find the tensors that are nothing without their layer: DoRA's magnitudes, biases of lora_B and of the base."""
    key = module_key(layer)
    own = tuple(f"{key}.{part}" for part in ("lora_", "dora_", "base_layer."))
    return tuple(other for other in others if other.tensor.key.startswith(own) and other.tensor.is_readable)


def _carried(
    adapter: Adapter, layers: Sequence[AdapterLayer], tasks: Sequence[Task], *, same_kind: bool
) -> tuple[tuple[OtherTensor, ...], dict[str, str]]:
    """Sort what is no layer into what can be copied, and what is left out."""
    biases = {bias.tensor.key for task in tasks for bias in task.biases}
    dropped = {
        other.tensor.key
        for layer in adapter.layers
        if layer not in layers
        for other in _followers(layer, adapter.others)
    }
    carried, left_out = [], {}
    for other in adapter.others:
        if not same_kind or not other.tensor.is_readable or other.tensor.key in dropped:
            left_out[other.name] = other.describe()
        elif other.tensor.key not in biases:
            carried.append(other)
    return tuple(carried), left_out


def _settings(adapter: Adapter, base: str | PathLike[str] | None) -> Mapping[str, Any]:
    if adapter.kind == "peft":
        return read_json(adapter.path.parent / PEFT_CONFIG)
    return {"base_model_name_or_path": None if base is None else str(base)}
