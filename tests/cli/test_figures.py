"""Figures say what the figures say: the data on the lines, labels that do not overlap, no display needed."""

from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from lowrank_core.cli.demo import figure as demo_figure
from lowrank_core.cli.demo.experiments import Experiments
from lowrank_core.models.inspection.layers import inspect
from lowrank_core.models.operations.comparison import compare

from .conftest import write_adapter


def data(figure: Figure, panel: int) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[panel].lines]


def is_drawn(figure: Figure, panel: int, values: np.ndarray) -> bool:
    return any(line.shape == values.shape and np.array_equal(line, values) for line in data(figure, panel))


def labels(figure: Figure, panel: int) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def test_the_demo_draws_what_was_computed(results: Experiments) -> None:
    figure = demo_figure.draw(results)
    ranks = results.settings.ranks
    assert is_drawn(figure, 0, results.style.singular_values)
    assert is_drawn(figure, 0, results.facts.singular_values)
    assert is_drawn(figure, 1, results.facts.captured)
    for rule in ("standard", "rslora"):
        assert is_drawn(figure, 2, results.scalings.gamma[rule])
        assert is_drawn(figure, 3, results.learning[0].curves[rule][-1])
        assert is_drawn(figure, 4, results.style.at(results.style.errors[rule], ranks))
        assert is_drawn(figure, 5, results.facts.at(results.facts.errors[rule], ranks))
        assert is_drawn(figure, 6, results.learning[0].errors[rule])
        assert is_drawn(figure, 7, results.learning[1].errors[rule])
        assert is_drawn(figure, 7, results.learning[2].errors[rule])
    for panel, learning in ((6, results.learning[0]), (7, results.learning[1])):
        assert is_drawn(figure, panel, learning.best)


def test_every_line_of_the_demo_is_labelled_and_none_shares_a_look(results: Experiments) -> None:
    figure = demo_figure.draw(results)
    assert labels(figure, 0) == ["style", "facts"]
    assert set(labels(figure, 5)) == {"no adapter", "best possible", "α/r", "α/√r"}
    assert set(labels(figure, 7)) == {"best possible", "α/r, 2e-3", "α/√r, 2e-3", "α/r, 5e-4", "α/√r, 5e-4"}
    looks = [
        (line.get_linestyle(), str(line._dash_pattern), line.get_marker(), line.get_markerfacecolor())
        for line in figure.axes[7].lines
    ]
    assert len(set(looks)) == len(looks)


def test_labels_lie_within_the_figure_and_apart(results: Experiments) -> None:
    figure = demo_figure.draw(results)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_drawing_leaves_matplotlibs_settings_alone(small: Experiments) -> None:
    before = dict(mpl.rcParams)
    with mpl.rc_context({"axes.facecolor": "red", "lines.linewidth": 9.0}):
        figure = demo_figure.draw(small)
        assert mpl.rcParams["lines.linewidth"] == 9.0
    assert max(line.get_linewidth() for line in figure.axes[0].lines) == 2.0
    assert figure.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert dict(mpl.rcParams) == before


def test_an_inspection_draws_every_layer(tmp_path: Path) -> None:
    report = inspect(write_adapter(tmp_path / "deep", layers=5))
    figure = report.figure()
    for layer in report.layers:
        assert is_drawn(figure, 0, layer.singular_values / layer.singular_values[0])
    medians = np.median([layer.singular_values / layer.singular_values[0] for layer in report.layers[1::2]], axis=0)
    assert any(np.allclose(line, medians) for line in data(figure, 0) if line.shape == medians.shape)
    needed = np.concatenate([np.asarray(dots.get_offsets())[:, 0] for dots in figure.axes[2].collections])
    assert sorted(needed) == sorted(layer.rank_for_variance[0.95] for layer in report.layers)
    assert [text.get_text() for text in figure.axes[2].get_yticklabels()] == ["mlp.down_proj", "self_attn.q_proj"]


def test_best_errors_of_an_inspection_are_those_reported(adapter: Path) -> None:
    report = inspect(adapter, ranks=[1, 2, 3])
    figure = report.figure()
    for layer in report.layers:
        assert any(np.allclose(line, layer.best_error, atol=1e-12) for line in data(figure, 1) if line.size == 3)


def test_many_kinds_of_layers_share_one_median(tmp_path: Path) -> None:
    report = inspect(write_adapter(tmp_path / "deep", layers=1))
    layers = [
        type(layer)(**{**vars(layer), "name": f"part_{letter}.{layer.name}"})
        for letter in "abcdefgh"
        for layer in report.layers
    ]
    many = type(report)(**{**vars(report), "layers": tuple(layers)})
    assert labels(many.figure(), 0) == ["median of 16"]


def test_zero_updates_are_not_drawn_and_alone_have_no_figure(adapter: Path) -> None:
    report = inspect(adapter)
    zero = type(report.layers[0])(**{**vars(report.layers[0]), "norm": 0.0, "singular_values": np.zeros(3)})
    type(report)(**{**vars(report), "layers": (zero, *report.layers[1:])}).figure()
    with pytest.raises(ValueError, match="every update is zero"):
        type(report)(**{**vars(report), "layers": (zero,)}).figure()


def test_a_long_kind_of_layers_is_labelled_by_its_last_whole_parts(adapter: Path) -> None:
    report = inspect(adapter)
    names = ["encoder.self_attention.query_projection", "decoder_of_the_first_stage_projection"]
    layers = [
        type(layer)(**{**vars(layer), "name": name}) for layer, name in zip(report.layers[:2], names, strict=True)
    ]
    figure = type(report)(**{**vars(report), "layers": tuple(layers)}).figure()
    assert sorted(labels(figure, 0)) == ["…query_projection", "…st_stage_projection"]


def test_cosines_of_several_updates_are_coloured_from_minus_1_to_1(tmp_path: Path) -> None:
    report = compare([write_adapter(tmp_path / str(seed), seed=seed) for seed in range(3)])
    [image] = report.figure().axes[0].images
    assert image.get_clim() == (-1.0, 1.0)
    np.testing.assert_array_equal(image.get_array(), report.cosines)
