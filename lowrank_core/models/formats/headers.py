"""What an adapter's file says of each layer: rank, alpha and the scale that follows, and what readers make of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowrank_core import scaling_rule
from lowrank_core._dtypes import as_dtype
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.peft import check_peft_config, open_peft
from lowrank_core.models.operations.factoring import Factored, Form

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lowrank_core.models.formats.adapter import Adapter
    from lowrank_core.models.formats.placements import Placement


class Header(NamedTuple):
    """
    What a file says of a layer.

    Attributes
    ----------
    rank : int
        That of the stored factors, zeros included.
    alpha : float
        What the file, or its configuration, holds.
    scaling : float
        What a reader makes of the two.
    """

    rank: int
    alpha: float
    scaling: float


def headers_of(kept: Mapping[Placement, Factored], form: Form) -> dict[Placement, Header]:
    """
    Say what a file holds of each layer that keeps a component.

    Parameters
    ----------
    kept : mapping of Placement to Factored
        The layers, each of rank 1 at least.
    form : Form
        How their factors are stored.

    Returns
    -------
    dict of Placement to Header
        With one rank for all where the form is uniform, and for layers that PEFT's configuration cannot tell apart.
    """
    largest: dict[str, int] = {}
    for placement, factored in kept.items():
        group = "" if form.uniform else placement.module
        largest[group] = max(largest.get(group, 0), factored.rank)
    if form.uniform and form.kohya and kept:
        # There α is a tensor of the factors' dtype, and has to equal the rank exactly: bfloat16 has no 257.
        while float(np.asarray(largest[""], dtype=as_dtype(form.dtype))) != largest[""]:
            largest[""] += 1
    return {
        placement: _header(factored, largest["" if form.uniform else placement.module], form)
        for placement, factored in kept.items()
    }


def kohya_dimensions(headers: Iterable[Header]) -> dict[str, str]:
    """
    Write what kohya's metadata says of ranks.

    Parameters
    ----------
    headers : iterable of Header
        All layers of the file.

    Returns
    -------
    dict of str to str
        With "Dynamic" where there are several, as kohya's own tools write it.
    """
    known = list(headers)
    ranks, alphas = ({str(header.rank) for header in known}, {f"{header.alpha:g}" for header in known})
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
    }


def described_adapter(path: Path, headers: Mapping[Placement, Header], config: dict[str, Any], dtype: str) -> Adapter:
    """
    Give a PEFT adapter as its reader will see it, whether or not it is written.

    Parameters
    ----------
    path : Path
        Where it is, or would be.
    headers : mapping of Placement to Header
        Its layers.
    config : dict
        Its configuration.
    dtype : str
        What its factors are stored in.

    Returns
    -------
    Adapter
        With the warnings that :func:`~lowrank_core.models.formats.open_adapter` gives.
    """
    tensors: dict[str, StoredTensor] = {}
    for placement, header in headers.items():
        A_shape = (header.rank, *placement.kernel)
        # How many outputs a layer has matters to no scale.
        B_shape = (1, header.rank, *(1 for _ in placement.kernel[1:]))
        for key, shape in ((placement.A_key, A_shape), (placement.B_key, B_shape)):
            tensors[key] = StoredTensor(path, key, shape, dtype)
    return open_peft(path, tensors, check_peft_config(path, config))


def check_headers(adapter: Adapter, headers: Mapping[Placement, Header]) -> None:
    """
    Check that a reader gives every layer the rank and the scale that it was made for.

    Parameters
    ----------
    adapter : Adapter
        As it was read back.
    headers : mapping of Placement to Header
        What was written.

    Raises
    ------
    ValueError
        Naming a layer that comes with another rank or scale, or not at all.
    """
    found = {layer.A.key: (layer.rank, layer.scaling) for layer in adapter.layers}
    for placement, header in headers.items():
        rank, scaling = found.get(placement.A_key, (0, 0.0))
        if rank != header.rank or not math.isclose(scaling, header.scaling, rel_tol=1e-12):
            raise ValueError(
                f"{placement.name!r} would be read with rank {rank} and scale {scaling}, but was made for rank "
                f"{header.rank} and scale {header.scaling}: nothing was written"
            )


def _header(factored: Factored, rank: int, form: Form) -> Header:
    alpha = form.alpha_at(rank)
    if not math.isclose(form.scaling_at(rank), factored.scaling, rel_tol=1e-15):
        # Of the scale 1 whatever the rank: α/r and α/√r are 1 at r and √r.
        alpha = factored.scaling * rank / float(scaling_rule(form.rule)(rank, rank))
    return Header(rank, alpha, factored.scaling)
