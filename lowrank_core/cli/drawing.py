"""The figures of reports, each drawn by a module that is imported only then: matplotlib takes a second to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_core.cli.printable import in_figure, with_printable_texts, with_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lowrank_core.cli.demo.experiments import Experiments
    from lowrank_core.models import Compression, Inspection, RunHistory, UpdateComparison


def draw_demo(results: Experiments) -> Figure:
    """Draw both experiments of the demo."""
    from lowrank_core.cli.demo import figure

    return figure.draw(results)


def draw_inspection(inspection: Inspection) -> Figure:
    """Draw an inspection."""
    from lowrank_core.cli.reports import inspection_figure

    return inspection_figure.draw(with_texts(with_printable_texts(inspection), in_figure))


def draw_comparison(comparison: UpdateComparison) -> Figure:
    """Draw a comparison."""
    from lowrank_core.cli.reports import comparison_figure

    return comparison_figure.draw(with_texts(with_printable_texts(comparison), in_figure))


def draw_history(history: RunHistory) -> Figure:
    """Draw the history of a run."""
    from lowrank_core.cli.reports import history_figure

    return history_figure.draw(with_texts(with_printable_texts(history), in_figure))


def draw_written(adapter: Compression) -> Figure:
    """Draw a written adapter."""
    from lowrank_core.cli.reports import written_figure

    return written_figure.draw(with_texts(with_printable_texts(adapter), in_figure))
