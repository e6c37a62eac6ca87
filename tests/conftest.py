"""Workers, BLAS's threads, and Hypothesis profiles: ``dev`` (short, random), ``ci`` (the same examples every time),
``long`` (for a night), and ``few``, for runs in which kernels are Python.

``--hypothesis-profile=long`` chooses one; without it, ``ci`` where CI is set and ``dev`` elsewhere.
"""

import os

import pytest
import threadpoolctl
from hypothesis import HealthCheck, settings

from lowrank_core._processors import usable_processors
from tests.blas import blas_now

# Printed tables are as wide as this says: a shell may export it, and workers inherit it from readline.
os.environ.pop("COLUMNS", None)

# No deadline, since a first call compiles; no check for slow data, which a busy machine would fail.
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("dev", max_examples=40, **common)
settings.register_profile("ci", max_examples=100, derandomize=True, **common)
settings.register_profile("few", max_examples=5, derandomize=True, **common)
settings.register_profile("long", max_examples=10_000, **common)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return the number of workers for ``-n auto``: xdist itself disregards the quota of a container."""
    return usable_processors()


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """NumPy's BLAS on one thread, but where a test sets another count.

    Matrices here are small: two threads take five times the processor time, most of it to wait for each other, and more
    where other processes run.
    """
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(params=[1, 2])
def blas_before(request):
    """BLAS with a thread count of the process's own, whichever it may be."""
    with threadpoolctl.threadpool_limits(request.param, user_api="blas"):
        yield blas_now()
