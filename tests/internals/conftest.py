"""Tests of private code, marked ``internals``: a theorem about the public API is tested elsewhere."""


def pytest_itemcollected(item):
    """Mark the tests of this folder."""
    item.add_marker("internals")
