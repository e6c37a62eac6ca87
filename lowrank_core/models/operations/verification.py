"""Verify a merged model: whether each of its weights is that of the base with the adapter's update added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from lowrank_core.models.executors import Progress, map_layers
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.tensors import StoredTensor, describe
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.with_base import open_base, with_base
from lowrank_core.models.operations.changes import Change, Changes, changes_of
from lowrank_core.models.operations.placing import check_base
from lowrank_core.models.operations.weight_checks import Checked, VerifiedLayer, check_change, check_unchanged
from lowrank_core.models.operations.weight_merging import RoundingLoss, combined
from lowrank_core.models.pairing.alignment import AlignedNames, Match, align_names, describe_matches
from lowrank_core.models.sources import Source, names_of


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Whether a model is its base with the updates of an adapter.

    Attributes
    ----------
    base, adapter, merged : str
        Where each is.
    right : bool
        Whether every entry of the model is what a merge makes of base and adapter, and nothing is missing.
    complete : bool
        Whether all of the base, the adapter and the model could be compared.
    wrong_layers : int
        Number of layers with a wrong entry.
    rounding : RoundingLoss
        What a merge in the model's dtype loses of all updates together.
    layers : tuple of VerifiedLayer
        The updates, by the names of their tensors.
    equal : int
        Number of tensors that the adapter does not change, or has in full, and that are as they should be.
    differences : dict of str to str
        Those that are not, with how many entries differ; and tensors that are in one of the checkpoints only.
    skipped, failures : dict of str to str
        Tensors of the adapter that could not be looked for, and layers that could not be compared, with the reason.
    alignment : tuple of AlignedNames
        How the names of base and model differ, where they do.
    """

    base: str
    adapter: str
    merged: str
    right: bool
    complete: bool
    wrong_layers: int
    rounding: RoundingLoss
    layers: tuple[VerifiedLayer, ...]
    equal: int
    differences: dict[str, str]
    skipped: dict[str, str]
    failures: dict[str, str]
    alignment: tuple[AlignedNames, ...]


def verify(
    base: Source,
    adapter: Source,
    merged: Source,
    *,
    base_restored: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Verification:
    r"""Check that a merged model is round(W + γBA) in its stored dtype, entry by entry.

    Parameters
    ----------
    base, adapter : path-like, mapping, model, Checkpoint or Adapter
        The checkpoint and the adapter that were merged, as :func:`~lowrank_core.models.apply` takes them.
    merged : path-like, mapping, model or Checkpoint
        The checkpoint that was made of them, by whatever program, with the names of the base or others that end alike.
    base_restored : bool
        The base is again as it was before an initialisation (PiSSA and similar) altered it.
    executor, progress
        As in :func:`~lowrank_core.models.inspect`, over the tensors.

    Returns
    -------
    Verification
        Every layer, right or wrong, with what a merge in its dtype loses of the update.

    Raises
    ------
    FileNotFoundError
        If an input is missing.
    ValueError
        If a file is damaged, or the adapter's initialisation altered the base. A single layer that cannot be compared
        is a failure in the result.

    See Also
    --------
    apply : Make the merged model.
    inspect : The update itself, from two checkpoints.

    Notes
    -----
    The merge is replayed as :func:`~lowrank_core.models.apply` makes it, and in the ways in which PEFT does: in the
    dtype that the model may have been loaded in, with each product, multiple and sum rounded as PEFT rounds it. A
    program may sum up a product of rank r in any order, and what it gets then is within

    .. math:: \frac{r u}{1 - r u}\,(|B||A|)_{ij}

    of the exact product, with u half the eps of the arithmetic's dtype. The two ends of that interval, rounded in the
    same steps, enclose the merged entry, because rounding is monotone. A layer is right if the entries of all its
    weight are enclosed so by one of the replays. Where the update is less than half a step of the stored weights in
    every entry, a layer that was not merged is right too: its numbers are those that a merge returns.

    Of DoRA and other updates that multiply the weight itself, the interval allows for the roundings of its norm.

    References
    ----------
    Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, eq. (3.5).

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import verify
    >>> W, B, A = np.eye(3, 4, dtype=np.float32), np.ones((3, 2), np.float32), np.full((2, 4), 0.25, np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, adapter, merged = (pathlib.Path(folder, f"{name}.safetensors") for name in ("base", "lora", "merged"))
    ...     save_file({"proj.weight": W}, base)
    ...     save_file({"transformer.proj.lora_A.weight": A, "transformer.proj.lora_B.weight": B}, adapter)
    ...     save_file({"proj.weight": W + 2 * B @ A}, merged)
    ...     layer = verify(base, adapter, merged).layers[0]
    >>> layer.right, layer.wrong_entries, layer.diagnosis
    (False, 12, 'applied twice')
    """
    names = names_of((base, adapter, merged))
    checkpoint = open_base(base, adapter)
    opened = with_base(open_adapter(adapter), checkpoint)
    check_base(opened, restored=base_restored)
    changes = changes_of(opened, checkpoint)
    model = open_checkpoint(merged)
    expected = checkpoint.tensors | {key: change.weight for key, change in changes.by_key.items()}
    matches = align_names(expected, model.tensors, {}, lambda _one, _other: True).matches
    jobs = [
        _Job(changes.by_key.get(each.base, Change(each.base, expected[each.base])), model.tensors[each.tuned])
        for each in matches
    ]
    layers: list[VerifiedLayer] = []
    differences = dict(_in_one_only(expected, model.tensors, matches, changes))
    failures = dict(changes.failures)
    equal = 0
    for job, result in map_layers(_checked, sorted(jobs, key=lambda job: job.name), executor, progress):
        if isinstance(result, str):
            failed = [update.name for update in job.change.updates] or [job.name]
            failures |= dict.fromkeys(failed, result)
            continue
        layers += result.layers
        failures |= result.failures
        if result.difference:
            differences[job.name] = result.difference
        elif not job.change.updates:
            equal += 1
    wrong = sum(not layer.right for layer in layers)
    complete = not failures and not changes.skipped
    return Verification(
        base=names[0],
        adapter=names[1],
        merged=names[2],
        right=complete and not wrong and not differences,
        complete=complete,
        wrong_layers=wrong,
        rounding=combined([layer.rounding for layer in layers]),
        layers=tuple(layers),
        equal=equal,
        differences=dict(sorted(differences.items())),
        skipped=dict(sorted(changes.skipped.items())),
        failures=dict(sorted(failures.items())),
        alignment=tuple(describe_matches(matches)),
    )


def to_rows(report: Verification) -> list[dict[str, Any]]:
    """Return a report as rows of a table with the same columns, one for each layer; None where there is no figure."""
    figures = [field.name for field in fields(VerifiedLayer) if field.name not in {"shape", "rounding"}]
    losses = [field.name for field in fields(RoundingLoss)]
    columns = dict.fromkeys(["name", "rows", "columns", *figures[1:], *losses, "failure"])
    done = [
        columns
        | {name: getattr(layer, name) for name in figures}
        | {"rows": layer.shape[0], "columns": layer.shape[1]}
        | vars(layer.rounding)
        for layer in report.layers
    ]
    return done + [columns | {"name": name, "failure": reason} for name, reason in report.failures.items()]


class _Job(NamedTuple):
    """One tensor of the merged model, and what it is to be: all that a worker needs."""

    change: Change
    merged: StoredTensor

    @property
    def name(self) -> str:
        """The tensor's name in the base."""
        return self.change.key


def _checked(job: _Job) -> Checked:
    return check_change(*job) if job.change.updates else check_unchanged(*job)


def _in_one_only(
    expected: Mapping[str, StoredTensor],
    model: Mapping[str, StoredTensor],
    matches: Sequence[Match],
    changes: Changes,
) -> Iterator[tuple[str, str]]:
    """Yield the tensors that only one side has; but for copies of others, as weights that a model ties are stored."""
    changed = {key for key, change in changes.by_key.items() if change.updates}
    matched = {each.base: expected[each.base] for each in matches if each.base not in changed}
    for key in expected.keys() - {each.base for each in matches}:
        if key in changed or not _has_copy(expected[key], matched):
            yield key, f"not in the merged model: {describe(expected[key])}"
    found = {each.tuned: model[each.tuned] for each in matches}
    for key in model.keys() - found.keys():
        if not _has_copy(model[key], found):
            yield key, f"only in the merged model: {describe(model[key])}"


def _has_copy(tensor: StoredTensor, others: Mapping[str, StoredTensor]) -> bool:
    """Whether one of the others has the same bytes."""
    alike = [other for other in others.values() if (other.shape, other.dtype) == (tensor.shape, tensor.dtype)]
    return bool(alike) and any(other.read().tobytes() == tensor.read().tobytes() for other in alike)
