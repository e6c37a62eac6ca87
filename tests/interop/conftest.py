import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """The models are small: threads would only make them wait for each other, and move the figures."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
