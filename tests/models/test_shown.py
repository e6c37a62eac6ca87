"""Reports show themselves in one line, and in a notebook as tables, whatever their layers are called."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lowrank_core.models import compare, extract, history, inspect, open_checkpoint

ODD = "<b>$a$\x1b[31m"


@pytest.fixture(scope="module")
def reports():
    """A report of each kind, of forty layers, one of which has an odd name."""
    rng = np.random.default_rng(0)
    names = [*(f"h.{block}.proj.weight" for block in range(39)), f"{ODD}.weight"]
    base = {name: rng.standard_normal((8, 6)) for name in names}
    tuned = [{name: weight + rng.standard_normal((8, 6)) for name, weight in base.items()} for _ in range(3)]
    return {
        "inspection": inspect(tuned[0], base),
        "comparison": compare(tuned[:2], base),
        "comparison of three": compare(tuned, base),
        "adapter": extract(base, tuned[0], rank=2),
        "history": history(tuned, base),
    }


LINES = {
    "inspection": "<Inspection of state_dict − state_dict (2) (checkpoints): 40 layers, norm ",
    "comparison": "<UpdateComparison of state_dict and state_dict (2): cosine ",
    "comparison of three": "<UpdateComparison of state_dict and state_dict (2) and state_dict (3): cosine ",
    "adapter": "<Compression extract → in memory (peft): 40 layers, ",
    "history": "<RunHistory: 40 layers at the steps 1, 2, 3>",
}


@pytest.mark.parametrize("name", LINES)
def test_a_report_is_a_line_a_table_and_a_figure(reports, name):
    report = reports[name]
    assert repr(report).startswith(LINES[name])
    assert len(repr(report)) < 130
    assert "\n" not in repr(report)
    table = report._repr_html_()
    assert "h.10.proj" in table
    assert "<b>" not in table
    assert "\x1b" not in table
    figure = report.figure()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_layers_are_records_of_their_fields(reports):
    layer = reports["inspection"].layers[0]
    assert set(vars(layer)) == set(type(layer).__dataclass_fields__)
    assert len(repr(open_checkpoint({"a.weight": np.ones((300, 300))}))) < 100
    assert len(repr(reports["adapter"].adapter)) < 200


def test_no_legend_of_a_comparison_hides_a_mark(rng):
    one, other = ({f"h.0.{kind}.weight": rng.standard_normal((8, 6)) for kind in "abcdefgh"} for _ in range(2))
    figure = compare([one, other], {name: np.zeros((8, 6)) for name in one}).figure()
    figure.draw_without_rendering()
    for axes in figure.axes:
        frame = axes.get_legend().get_window_extent()
        for marks in axes.collections:
            places = marks.get_offset_transform().transform(marks.get_offsets())
            assert not any(frame.contains(*place) for place in places), axes.get_title()


def test_the_rounding_of_angles_is_not_drawn_as_growth(rng):
    tuned = {"h.0.proj.weight": rng.standard_normal((8, 6))}
    figure = history([tuned] * 3, {"h.0.proj.weight": np.zeros((8, 6))}).figure()
    angles = figure.axes[-1]
    assert np.nanmax([line.get_ydata() for line in angles.lines]) < 1e-3
    assert angles.get_ylim() == (0.0, 1.0)


def test_a_table_in_a_notebook_has_the_columns_and_pairs_of_its_report(reports):
    for heading in ("m × n", "rank", "variance", "error", "best error"):
        assert f">{heading}<" in reports["adapter"]._repr_html_()
    tables = reports["comparison of three"]._repr_html_()
    assert tables.count("<table") == 3
    assert "</div><div" in tables or "</table><table" in tables


def test_a_figure_is_of_the_paths_that_were_compared(rng):
    base = {"h.0.a.weight": rng.standard_normal((8, 6))}
    tuned = {"h.0.a.weight": rng.standard_normal((8, 6))}
    assert inspect(tuned, base).figure().get_suptitle().startswith("state_dict − state_dict (2)")
