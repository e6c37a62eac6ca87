"""What the operations that write adapters share: their options, and a name for the adapter of each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from os import PathLike
from pathlib import Path

from lowrank_core.models.executors import Progress
from lowrank_core.models.formats import Format
from lowrank_core.models.operations.destinations import IN_MEMORY
from lowrank_core.models.operations.rank_choice import Rank, as_count
from lowrank_core.models.operations.rank_words import RankWords
from lowrank_core.models.sources import Source


class WriteOptions(RankWords, total=False):
    """The options of every operation that writes adapters, for the signatures of its overloads."""

    format: str | None
    include: Sequence[str]
    exclude: Sequence[str]
    prefix: str | None
    alpha: float | None
    uniform: bool
    force: bool
    dry_run: bool
    executor: Executor | None
    progress: Progress | None


class ExtractOptions(WriteOptions, total=False):
    """The options of :func:`~lowrank_core.models.extract`."""

    above_noise: bool
    sides: int | None
    tolerance: float | None
    embeddings: Sequence[str]
    transposed: Sequence[str] | None
    match: Mapping[str, str] | None
    names: str
    component: str | None
    rule: str
    dtype: str


class ResizeOptions(WriteOptions, total=False):
    """The options of :func:`~lowrank_core.models.resize`."""

    base: Source | None
    base_restored: bool
    rule: str | None
    dtype: str | None


def outputs_at(
    out: str | PathLike[str] | None, rank: Rank | Sequence[int] | None, target: Format
) -> dict[Path, Rank | None]:
    """Return the paths to write and the rank at each: `out`, or for several ranks a name with each of them.

    Without `out`, they are what adapters in memory are called.

    Examples
    --------
    >>> from lowrank_core.models.formats import format_named
    >>> for path, rank in outputs_at("loras/style.safetensors", [4, 16], format_named("kohya")).items():
    ...     print(path.as_posix(), rank)
    loras/style-r4.safetensors 4
    loras/style-r16.safetensors 16
    """
    out = Path(IN_MEMORY if out is None else out)
    if not isinstance(rank, Sequence):
        return {out: rank}
    counts = sorted({as_count(each) for each in rank})
    if not counts or counts[0] < 1:
        raise ValueError(f"several ranks are whole numbers of at least 1, as [4, 8, 16]; got {list(rank)!r}")
    ending = "" if target.files else out.suffix
    return {out.with_name(f"{out.name.removesuffix(ending)}-r{count}{ending}"): count for count in counts}
