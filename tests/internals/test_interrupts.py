"""Interrupts that strike anywhere: no task begins after one, and BLAS has its own thread count back."""

import itertools
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lowrank_core as lc
from lowrank_core._linalg import threads, thresholds
from lowrank_core._linalg.kernels import band
from lowrank_core._linalg.kernels import learning as kernels
from lowrank_core._linalg.threads import blas_threads
from lowrank_core._validation import as_workers
from tests.blas import blas_now

RNG = np.random.default_rng(5)
STACK = RNG.standard_normal((24, 40, 36))
LARGE = RNG.standard_normal((530, 514))  # a smaller side beyond the limit of a worker's BLAS
VALUES = lc.spectrum(STACK).values


@pytest.fixture
def interruptible():
    """Handle SIGINT as Python does by default; a shell's background jobs are started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupt(monkeypatch, interruptible):
    """For tasks to call: the first interrupts the caller, and all wait until it has dropped what has not begun."""
    drop, struck, heard, calls = threads._drop, threading.Event(), threading.Event(), itertools.count()

    def telling(tasks):
        drop(tasks)
        if struck.is_set():
            heard.set()

    def strike():
        if next(calls):
            assert heard.wait(60)
            return
        main = threading.main_thread().ident
        struck.set()
        signal.pthread_kill(main, signal.SIGINT)
        # What strikes as Python goes to sleep there is heard when it wakes, which another one sees to.
        for _ in range(10):
            if heard.wait(20):
                return
            signal.pthread_kill(main, signal.SIGINT)

    monkeypatch.setattr(threads, "_drop", telling)
    return strike


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("function", ["spectrum", "truncate"])
def test_an_interrupt_drops_what_has_not_begun_and_puts_blas_back(
    monkeypatch, blas_before, interrupt, workers, function
):
    svd, begun = np.linalg.svd, []

    def interrupting(*arguments, **options):
        begun.append(1)
        # A worker's first matrix lasts until the caller has heard of the interrupt.
        interrupt()
        return svd(*arguments, **options)

    updates = RNG.standard_normal((400, 70, 60))  # beyond what a kernel of our own takes
    monkeypatch.setattr(np.linalg, "svd", interrupting)
    call = {"spectrum": lc.spectrum, "truncate": lambda stack, **options: lc.truncate(stack, 1, **options)}[function]
    with pytest.raises(KeyboardInterrupt):
        call(updates, method="lapack", workers=workers)
    assert blas_now() == blas_before
    # The chunks under way are finished: one for each worker, of a sixteenth of the batch.
    each = 1 if function == "spectrum" else len(updates) // 16
    assert len(begun) <= (1 if workers == 1 else workers * each)
    monkeypatch.undo()
    assert np.array_equal(lc.spectrum(STACK).values, VALUES)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_interrupt_of_learning_waits_for_one_long_run_a_worker_and_no_more(
    monkeypatch, blas_before, interrupt, optimizer
):
    begun = []

    def interrupting(start, stop, *_):
        begun.append(stop - start)
        interrupt()

    monkeypatch.setattr(kernels, "learn", interrupting)
    with pytest.raises(KeyboardInterrupt):
        lc.learning_sweep(STACK, [16, 8], steps=10_000, repeats=20, optimizer=optimizer)
    assert begun == [1] * len(begun)
    assert len(begun) <= as_workers(None)
    assert blas_now() == blas_before


@pytest.mark.parametrize("workers", [1, 2])  # fewer than the parts of a panel
def test_an_interrupt_of_a_reduction_in_two_stages_waits_for_the_panel_under_way_and_no_more(
    monkeypatch, blas_before, interrupt, workers
):
    reduce, update, panels, begun = band.reduce_panel, band.update_and_multiply, [], []

    def counted(*arguments):
        panels.append(1)
        return reduce(*arguments)

    def interrupting(*arguments):
        begun.append(1)
        interrupt()
        return update(*arguments)

    monkeypatch.setattr(thresholds, "TWO_STAGES", min(LARGE.shape))
    monkeypatch.setattr(band, "reduce_panel", counted)
    monkeypatch.setattr(band, "update_and_multiply", interrupting)
    with pytest.raises(KeyboardInterrupt):
        lc.spectrum(LARGE, method="gram", workers=workers)
    assert len(panels) == 1
    assert 1 <= len(begun) <= workers
    assert blas_now() == blas_before
    monkeypatch.undo()
    assert np.array_equal(lc.spectrum(STACK).values, VALUES)


def test_an_interrupt_of_one_call_leaves_another_alone(monkeypatch, blas_before, interruptible):
    svd, inside, release = np.linalg.svd, threading.Event(), threading.Event()
    updates = RNG.standard_normal((2, 70, 60))
    main = threading.main_thread()

    def waiting(*arguments, **options):
        if threading.current_thread() is main:
            assert inside.wait(60)
            signal.raise_signal(signal.SIGINT)
        inside.set()
        assert release.wait(60)
        return svd(*arguments, **options)

    monkeypatch.setattr(np.linalg, "svd", waiting)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lc.spectrum, updates[0], method="lapack")
        with pytest.raises(KeyboardInterrupt):
            lc.spectrum(updates[1], method="lapack")
        # Held for the call that goes on, and put back when it is done.
        assert set(blas_now().values()) == {1}
        release.set()
        result = other.result(60)
    monkeypatch.undo()
    assert blas_now() == blas_before
    assert np.array_equal(result.values, lc.spectrum(updates[0], method="lapack").values)


def interrupted_at(number):
    """Take BLAS's lock, with an interrupt at the n-th place where Python looks for one; None if there are fewer."""
    places = 0
    struck = None

    def look(frame, event, _):
        nonlocal places, struck
        # Python handles signals when a function is entered and when one in C has returned. On entering ``__exit__``
        # itself nothing can be done about it: https://github.com/python/cpython/issues/74174.
        if event not in {"call", "c_return"} or frame.f_code.co_filename == __file__:
            return
        if (event, frame.f_code.co_name) == ("call", "__exit__"):
            return
        # Nor from Python 3.14 on about the lock of threadpoolctl, which an interrupt after its acquisition leaves held.
        if sys.version_info >= (3, 14) and Path(frame.f_code.co_filename).name == "threadpoolctl.py":
            return
        places += 1
        if places == number:
            struck = f"{frame.f_code.co_name}, line {frame.f_lineno}"
            raise KeyboardInterrupt

    holder = blas_threads(1)
    before = sys.getprofile()
    try:
        sys.setprofile(look)
        with holder:
            pass
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(before)
    return struck


def test_an_interrupt_anywhere_in_the_lock_restores_blas(blas_before):
    with blas_threads(1):
        pass  # the controller is made once
    number = 0
    while place := interrupted_at(number := number + 1):
        assert blas_now() == blas_before, place
        # No holder is left, and the mutex is free: another thread acquires the lock with another count.
        entered = threading.Event()

        def enter(entered=entered):
            with blas_threads(None):
                entered.set()

        other = threading.Thread(target=enter, daemon=True)
        other.start()
        assert entered.wait(60), place
        other.join(60)
    assert number > 10
