"""Counts of bytes as tables write them."""

import pytest

from lowrank_core.cli.reports.written_tables import byte_text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1049, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")),
        *((1_234_567, "1.2 MB"), (7 * 10**9, "7.0 GB"), (3 * 10**12, "3.0 TB"), (5 * 10**15, "5000.0 TB")),
    ],
)
def test_bytes_are_written_in_powers_of_a_thousand(number, text):
    assert byte_text(number) == text
