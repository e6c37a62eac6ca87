"""The figures of reports, which import matplotlib when they are drawn: it takes a second to load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lowrank_core.cli.demo.experiments import Experiments


class Report(Protocol):
    """A report that has a figure."""

    def figure(self) -> Figure:
        """Draw it."""


def draw_demo(results: Experiments) -> Figure:
    """Draw both experiments of the demo."""
    from lowrank_core.cli.demo import figure

    return figure.draw(results)


def draw_report(report: Report) -> Figure:
    """Draw a report."""
    return report.figure()
