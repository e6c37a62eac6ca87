"""Tests beside real peers, marked ``interop``: only these need PyTorch and PEFT."""

import pytest


def pytest_ignore_collect(config):
    """Ignore these files where the marker deselects all of them, since importing them needs the peers."""
    return True if "not interop" in config.option.markexpr else None


def pytest_itemcollected(item):
    """Mark the tests of this folder."""
    item.add_marker("interop")


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """PyTorch on one thread: the models are small, and more threads would wait for each other and move the figures."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
