"""The figure of a written adapter: a mark for every layer where its figures are, and labels that can be read."""

import dataclasses
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lowrank_core.models.operations.compression import Compression
from lowrank_core.models.operations.resizing import resize

from .conftest import write_adapter

KINDS = ["mlp.down_proj", "self_attn.q_proj"]


@pytest.fixture
def report(tmp_path: Path) -> Compression:
    """Five blocks of two layers, with a rank of their own for each kind."""
    source = write_adapter(tmp_path / "deep", layers=5)
    return resize(source, tmp_path / "out", rank=lambda s: 1 if s.shape[0] == 12 else 2, dtype="float16", dry_run=True)


def marks(figure: Figure, panel: int) -> list[np.ndarray]:
    return [np.asarray(marks.get_offsets()) for marks in figure.axes[panel].collections]


def test_every_layer_is_drawn_at_its_numbers(report: Compression) -> None:
    figure = report.figure()
    layers = [layer for kind in KINDS for layer in report.layers if layer.name.endswith(kind)]
    quantities = [["rank"], ["storage_error", "error"], ["source_parameters", "parameters"]]
    for panel, names in enumerate(quantities):
        for drawn, name in zip(marks(figure, panel), names, strict=True):
            np.testing.assert_array_equal(drawn[:, 0], [getattr(layer, name) for layer in layers])
            # Within the row of its kind, and the deeper in the model the lower: the axis points down.
            np.testing.assert_array_equal(drawn[:, 1].round(), np.repeat([0, 1], 5))
            assert np.all(np.diff(drawn[:5, 1]) > 0)
        low, high = figure.axes[panel].get_xlim()
        assert all(low < value < high for drawn in marks(figure, panel) for value in drawn[:, 0])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == KINDS
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]


def test_marks_differ_by_shape_and_not_by_colour_alone(report: Compression) -> None:
    for axes in report.figure().axes[1:]:
        one, other = (marks.get_paths()[0].vertices for marks in axes.collections)
        assert one.shape != other.shape or not np.allclose(one, other)


@pytest.mark.parametrize("same_size", [False, True])
def test_labels_lie_within_their_panel_and_apart(report: Compression, same_size: bool) -> None:
    if same_size:
        layers = [dataclasses.replace(layer, source_parameters=layer.parameters) for layer in report.layers]
        report = dataclasses.replace(report, layers=tuple(layers))
    figure = report.figure()
    figure.draw_without_rendering()
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes[:2]] == [[], ["storage", "total"]]
    assert {text.get_text() for text in figure.axes[2].texts} == {"before", "after"}
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        panel = axes.get_window_extent()
        assert all(panel.x0 <= box.x0 and box.x1 <= panel.x1 and box.y1 <= panel.y1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_a_single_layer_and_one_of_rank_0_are_drawn(report: Compression) -> None:
    dataclasses.replace(report, layers=report.layers[:1]).figure()
    empty = dataclasses.replace(report.layers[0], rank=0, parameters=0, storage_error=0.0, error=1.0)
    figure = dataclasses.replace(report, layers=(empty, *report.layers[1:])).figure()
    figure.draw_without_rendering()
    assert all(np.isfinite(axes.get_xlim()).all() for axes in figure.axes)
