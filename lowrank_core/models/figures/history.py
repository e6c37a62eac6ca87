"""The figure of a run's history: norm, variance in one direction, effective rank and turning, against the step."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from lowrank_core._figures import KIND_LOOKS, ReportFigure, style
from lowrank_core.models.layer_kinds import AtStep, steps_by_kind

_PANELS = (
    ("norm", "Norm", "‖Δ‖", 0.0),
    ("leading_variance", "Variance in one direction", "σ₁² / N²", 0.0),
    ("effective_rank", "Effective rank", "exp of the entropy of σ/Σσ", 0.0),
    # Less than a degree, an axis of its own would show the rounding of the angles.
    ("column_angle", "Turned since the step before", "degrees", 1.0),
)


def draw(rows: Sequence[AtStep], run_steps: Sequence[int]) -> ReportFigure:
    """Draw the median of each kind of layer against the step, in a panel for each figure."""
    kinds = steps_by_kind(rows)
    if not kinds:
        raise ValueError("there is no figure to draw: no layer could be read.")
    with style():
        figure = ReportFigure(figsize=(18, 4.6), layout="constrained")
        for axes, (name, title, label, least_top) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            for nth, (kind, steps) in enumerate(kinds.items()):
                values = [median(getattr(row, name) for row in steps[step]) for step in run_steps]
                color, line, marker = KIND_LOOKS[nth % len(KIND_LOOKS)]
                axes.plot(run_steps, np.array(values), color=color, linestyle=line, marker=marker, label=kind)
            axes.set(title=title, xlabel="step", ylabel=label)
            axes.set_ylim(0.0, max(least_top, axes.get_ylim()[1]))
        labelled = axes.get_legend_handles_labels()
        figure.legend(*labelled, loc="outside lower center", ncols=4, fontsize=9, handlelength=3.5)
    return figure
