"""The file of measured ratios: a row measured again replaces its own lines and no others; the lines that asv draws."""

import json

import pytest

from benchmarks import compare, footprint, peers, spectra, sweeps


def lines_of(*rows):
    return [{"row": row, "date": date} for row, date in rows]


def test_a_row_measured_again_replaces_its_own_lines_in_the_tables_order(tmp_path):
    file = tmp_path / "figures.json"
    compare.keep(
        file, {"date": "first"}, lines_of(("small", 1), ("small", 1), ("article", 1), ("demo", 1)), quick=False
    )
    compare.keep(file, {"date": "later"}, lines_of(("sweep", 2), ("small", 2)), quick=False)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept["lines"] == lines_of(("small", 2), ("sweep", 2), ("article", 1), ("demo", 1))
    assert kept["machine"] == {"date": "first"}


def test_lines_of_small_inputs_are_never_among_those_of_full_ones(tmp_path):
    file = tmp_path / "figures.json"
    compare.keep(file, {"date": "first"}, lines_of(("small", 1), ("demo", 1)), quick=True)
    compare.keep(file, {"date": "later"}, lines_of(("small", 2)), quick=False)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept == {"machine": {"date": "later"}, "quick": False, "lines": lines_of(("small", 2))}


@pytest.mark.parametrize("module", [footprint, peers, spectra, sweeps])
def test_a_line_of_asv_has_one_size(module):
    """asv draws one line for a benchmark, the geometric mean over its parameters: a size has a benchmark of its own."""
    public = [value for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
    suite = [each for each in public if each.__module__ == module.__name__]
    assert suite
    for each in suite:
        numbers = [axis for axis in getattr(each, "params", []) if isinstance(axis[0], int | float)]
        assert all(max(axis) <= 2 * min(axis) for axis in numbers), each.__name__
