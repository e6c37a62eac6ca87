"""The figure of a run's history: norm, variance in one direction, effective rank and turning, against the step."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from lowrank_core._figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, ReportFigure, style
from lowrank_core.models.layer_kinds import AtStep, steps_by_kind

_PANELS = (
    ("norm", "Norm", "‖Δ‖"),
    ("leading_variance", "Variance in one direction", "σ₁² / N²"),
    ("effective_rank", "Effective rank", "exp of the entropy of σ/Σσ"),
    ("column_angle", "Turned since the step before", "degrees"),
)
_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK, SKY, GREY)
_MARKERS = "os^vDPXp"


def draw(rows: Sequence[AtStep], run_steps: Sequence[int]) -> ReportFigure:
    """Draw the median of each kind of layer against the step, in a panel for each figure."""
    kinds = steps_by_kind(rows)
    if not kinds:
        raise ValueError("there is no figure to draw: no layer could be read.")
    with style():
        figure = ReportFigure(figsize=(18, 4.6), layout="constrained")
        for axes, (name, title, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            for nth, (kind, steps) in enumerate(kinds.items()):
                values = [median(getattr(row, name) for row in steps[step]) for step in run_steps]
                marker, color = _MARKERS[nth % len(_MARKERS)], _COLORS[nth % len(_COLORS)]
                axes.plot(run_steps, np.array(values), color=color, marker=marker, label=kind)
            axes.set(title=title, xlabel="step", ylabel=label)
            axes.set_ylim(bottom=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    return figure
