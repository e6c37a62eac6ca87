"""A run's history from the checkpoints that it left: adapters, or fine-tunes of one base, by their steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core._results import count
from lowrank_core.models.executors import Progress, collect_layers
from lowrank_core.models.formats.adapter import AdapterLayer
from lowrank_core.models.inspection.layers import open_updates
from lowrank_core.models.norms import Update
from lowrank_core.models.operations.history_rows import DEFAULT_LEADING, HistoryRow, history_rows
from lowrank_core.models.pairing.changes import OtherChange
from lowrank_core.models.pairing.pairs import WeightPair
from lowrank_core.models.printable import for_figure
from lowrank_core.models.shown import Columns, layers_table
from lowrank_core.models.sources import Source, is_path, name_of, names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STEP = re.compile(r"(\d+)$")
# As transformers' Trainer names the folders of a run's checkpoints.
_CHECKPOINTS = "checkpoint-*"

Layer = AdapterLayer | WeightPair
# Of the table in a notebook.
_COLUMNS: Columns = {
    "step": lambda row: row.step,
    "norm": lambda row: row.norm,
    "variance in one direction": lambda row: row.leading_variance,
    "effective rank": lambda row: row.effective_rank,
    "outputs turned (°)": lambda row: row.column_angle,
}


@dataclass(frozen=True, kw_only=True, repr=False)
class RunHistory:
    """The history of a run.

    Attributes
    ----------
    paths, steps : tuple of str, tuple of int
        The checkpoints in the order of their steps: the numbers at the ends of their names, or 1, 2, 3 … in the order
        given where one has none.
    base : str or None
        The checkpoint that they were tuned from.
    leading : int
        How many leading directions the angles are between.
    rows : tuple of HistoryRow
        A row for each layer at each step, layer by layer.
    failures : dict of str to str
        Layers that could not be read at some step, or are not in all checkpoints, and why.
    not_low_rank : dict of str to str
        Tensors that are in no update, described with their norms.
    complete : bool
        Whether all that the checkpoints change is in the rows, but for vectors (biases, norms) beside a base.
    warnings : tuple of str
        What a user of it should know.
    """

    paths: tuple[str, ...]
    steps: tuple[int, ...]
    base: str | None
    leading: int
    rows: tuple[HistoryRow, ...]
    failures: dict[str, str]
    not_low_rank: dict[str, str]
    complete: bool
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        layers = count(len({row.name for row in self.rows}), "layer")
        return f"<RunHistory: {layers} at the steps {', '.join(map(str, self.steps))}>"

    def _repr_html_(self) -> str:
        return layers_table(repr(self), self.rows, _COLUMNS)

    def figure(self) -> Figure:
        """Draw what ``lowrank compare --series --figure`` does: the median of each kind of layer at each step.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If no layer could be read.
        """
        from lowrank_core.models.figures import history as history_figure

        shown = for_figure(self)
        return history_figure.draw(shown.rows, shown.steps)


def history(
    paths: Sequence[Source],
    base: Source | None = None,
    *,
    leading: int = DEFAULT_LEADING,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> RunHistory:
    """Report how the updates of a run grow and turn from checkpoint to checkpoint.

    Parameters
    ----------
    paths : sequence of path-like, mapping, model, Adapter or Checkpoint
        At least two checkpoints of one run: adapters, or with `base` checkpoints or adapters; or one folder with
        folders checkpoint-N, as transformers' Trainer writes them. As :func:`~lowrank_core.models.inspect` takes each.
    base : path-like, mapping, model or Checkpoint, optional
        The checkpoint that all were tuned from.
    leading : int
        How many leading directions the angles are between.
    executor, progress
        As :func:`~lowrank_core.models.inspect`; a task is one layer at all steps.

    Returns
    -------
    RunHistory

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If there are fewer than two checkpoints, two have the same step, a file is damaged or of an unknown kind, or no
        layer is in all of them.

    See Also
    --------
    lowrank_core.models.history_callback : The same rows while a model is trained.
    lowrank_core.models.compare : Two updates, or several, in pairs.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import history
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [pathlib.Path(folder, f"run-{step}.safetensors") for step in (100, 200)]
    ...     for path, size in zip(paths, (1.0, 2.0)):
    ...         save_file({"lora_unet_proj.lora_down.weight": np.eye(1, 4, dtype=np.float32),
    ...                    "lora_unet_proj.lora_up.weight": np.full((2, 1), size, np.float32)}, path)
    ...     rows = history(paths).rows
    >>> [(row.step, round(row.norm, 3), row.leading_variance) for row in rows], round(rows[1].column_angle, 6)
    ([(100, 1.414, 1.0), (200, 2.828, 1.0)], 0.0)
    """
    if leading < 0:
        raise ValueError(f"the number of leading directions is a whole number of at least 0; got {leading}")
    ordered, steps = _in_order(paths)
    names = names_of(ordered)
    sources = [open_updates(path, base) for path in ordered]
    by_step: list[dict[str, Layer]] = [{layer.name: layer for layer in source.layers} for source in sources]
    common = sorted(set.intersection(*(set(layers) for layers in by_step)))
    if not common:
        raise ValueError(f"no layer is in all {len(ordered)} checkpoints: they are not of one run")
    tasks = [_LayerSeries(name, tuple(layers[name] for layers in by_step)) for name in common]
    results, failures = collect_layers(partial(_rows, steps=steps, leading=leading), tasks, executor, progress)
    failures |= {name: "is not in all checkpoints" for layers in by_step for name in layers if name not in set(common)}
    others: dict[str, OtherChange] = {}
    for path, source in zip(names, sources, strict=True):
        failures |= {f"{name} ({path})": reason for name, reason in source.incomplete.items()}
        others |= {f"{name} ({path})": other for name, other in source.other_changes()}
    return RunHistory(
        paths=tuple(names),
        steps=steps,
        base=None if base is None else name_of(base),
        leading=leading,
        rows=tuple(row for _, rows in results for row in rows),
        failures=failures,
        not_low_rank={name: other.description for name, other in others.items()},
        complete=not failures and all(other.is_vector for other in others.values()),
        warnings=tuple(
            f"{path}: {warning}" for path, source in zip(names, sources, strict=True) for warning in source.warnings
        ),
    )


@dataclass(frozen=True)
class _LayerSeries:
    """One layer at all steps, not yet read."""

    name: str
    layers: tuple[Layer, ...]


def _rows(series: _LayerSeries, steps: Sequence[int], leading: int) -> list[HistoryRow]:
    rows: list[HistoryRow] = []
    previous: Update | None = None
    for step, layer in zip(steps, series.layers, strict=True):
        update = layer.update()
        rows += history_rows(step, [series.name], update, previous, leading)
        previous = update
    return rows


def _in_order(paths: Sequence[Source]) -> tuple[list[Source], tuple[int, ...]]:
    """Return checkpoints in the order of their steps, with these; those of a folder where one is given."""
    folder = Path(paths[0]) if len(paths) == 1 and is_path(paths[0]) else None
    if folder is not None and folder.is_dir():
        found = [path for path in folder.glob(_CHECKPOINTS) if path.is_dir() and _STEP.search(path.name)]
        if len(found) < 2:
            raise ValueError(
                f"{str(folder)!r} has {len(found)} folders named checkpoint-N; a history is of at least two. Give "
                "the checkpoints one by one where they have other names"
            )
        paths = found
    if len(paths) < 2:
        raise ValueError(f"a history is of at least two checkpoints; got {len(paths)}")
    names = [Path(name_of(path)) if is_path(path) else Path() for path in paths]
    numbers = [_STEP.search(name.stem if name.suffix == ".safetensors" else name.name) for name in names]
    found_steps = [int(number[1]) for number in numbers if number]
    steps = found_steps if len(found_steps) == len(paths) else list(range(1, len(paths) + 1))
    if len(set(steps)) < len(steps):
        raise ValueError(f"two checkpoints have the same step: {', '.join(map(str, sorted(steps)))}")
    ordered = sorted(zip(steps, paths, strict=True), key=lambda each: each[0])
    return [path for _, path in ordered], tuple(step for step, _ in ordered)


def to_rows(report: RunHistory) -> list[Mapping[str, Any]]:
    """Return the rows with the names of their columns."""
    return [vars(row) for row in report.rows]
