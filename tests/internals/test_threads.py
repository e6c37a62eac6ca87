"""Worker threads, the lock on BLAS's threads, and many callers at once."""

import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

import lowrank_core
from lowrank_core import (
    LowRankUpdate,
    effective_rank,
    error_sweep,
    learning_sweep,
    rank_for_variance,
    spectrum,
    truncate,
    variance_captured,
)
from lowrank_core._linalg import thresholds
from lowrank_core._linalg.threads import Team, blas_threads, call_with_lock, in_threads
from lowrank_core._processors import usable_processors
from lowrank_core._validation import as_workers
from tests.blas import blas_now

RNG = np.random.default_rng(0)
STACK = RNG.standard_normal((40, 48, 40))
MEDIUM = RNG.standard_normal((6, 70, 66))  # more entries than the kernel for small matrices takes
LARGE = RNG.standard_normal((520, 514)).astype(np.float32)  # a smaller side on which BLAS's own threads work
PRODUCT = LowRankUpdate(RNG.standard_normal((6, 48, 5)), RNG.standard_normal((6, 5, 40)), 0.5)


def test_workers_are_counted():
    assert as_workers(None) == usable_processors()
    assert as_workers(3) == 3
    for bad in (0, -1, 1.5, "all", True):
        with pytest.raises(ValueError, match=r"workers must be"):
            as_workers(bad)
    with pytest.raises(ValueError, match=r"at least 1, or None for all cores; got 0"):
        spectrum(STACK, workers=0)


def test_results_come_in_the_order_of_the_tasks():
    barrier = threading.Barrier(2, timeout=60)

    def task(number):
        if number < 2:
            barrier.wait()  # passes only if two tasks are under way at once
        return number

    assert in_threads(task, list(range(20)), 2) == list(range(20))


@pytest.mark.parametrize(("workers", "tasks"), [(1, [1, 2, 3]), (8, [1]), (8, [])])
def test_one_worker_or_one_task_runs_in_the_callers_thread(workers, tasks):
    assert set(in_threads(lambda _: threading.get_ident(), tasks, workers)) <= {threading.get_ident()}


def test_a_small_call_starts_no_thread(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread was started"))
    spectrum(RNG.standard_normal((4, 8, 8)))
    truncate(RNG.standard_normal((8, 8)), 2)
    spectrum(LowRankUpdate(np.ones((8, 2)), np.ones((2, 8))))


def test_one_worker_starts_no_thread(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread was started"))
    spectrum(STACK, workers=1)
    truncate(STACK, 2, workers=1)


def test_the_first_error_is_raised_and_later_tasks_are_dropped():
    begun = []
    failed = threading.Event()

    def task(number):
        begun.append(number)
        if number == 0:
            failed.set()
            raise KeyError("first")
        failed.wait(60)
        return number

    with pytest.raises(KeyError, match="first"):
        in_threads(task, list(range(10_000)), 2)
    assert len(begun) < 10_000


def test_of_several_errors_the_first_in_the_order_of_the_tasks_is_raised():
    second_failed = threading.Event()

    def task(number):
        if number == 1:
            second_failed.set()
            raise ValueError("second")
        second_failed.wait(60)
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        in_threads(task, [0, 1], 2)


def test_an_interrupt_while_workers_start_waits_for_the_task_that_has_begun():
    begun, ended = threading.Event(), []

    def task(number):
        begun.set()
        time.sleep(0.1)
        ended.append(number)

    with Team(2) as team:
        submit = team._pool.submit

        def interrupted(work):
            submit(work)
            assert begun.wait(60)
            raise KeyboardInterrupt

        team._pool.submit = interrupted
        with pytest.raises(KeyboardInterrupt):
            team.map(task, range(100))
        assert ended == [0]


def test_the_caller_is_one_of_the_workers():
    barrier = threading.Barrier(2, timeout=60)

    def task(_):
        barrier.wait()
        return threading.get_ident()

    with Team(2) as team:
        result = [team.map(task, [0, 1]) for _ in range(3)]
    assert len({ident for idents in result for ident in idents}) == 2
    assert all(threading.get_ident() in idents for idents in result)


def test_small_and_medium_run_on_one_blas_thread_and_large_on_the_processs_own(monkeypatch, blas_before):
    seen = {}
    for name in ("svd", "inv", "eigh"):
        plain = getattr(np.linalg, name)
        monkeypatch.setattr(
            np.linalg,
            name,
            lambda *a, _f=plain, **k: seen.setdefault(a[0].shape[-1], set(blas_now().values())) and _f(*a, **k),
        )
    spectrum(RNG.standard_normal((72, 72)), method="lapack")
    spectrum(MEDIUM, method="lapack", workers=2)
    spectrum(LARGE, method="lapack")
    assert seen[72] == {1}
    assert seen[66] == {1}
    assert seen[514] == set(blas_before.values())
    # In two stages on threads of its own, beside one of BLAS.
    seen.clear()
    monkeypatch.setattr(thresholds, "TWO_STAGES", 513)
    spectrum(LARGE)
    assert set().union(*seen.values()) <= {1}
    truncate(LARGE, 2, tolerance=0)
    assert seen[514] == set(blas_before.values())


def test_small_matrices_that_go_to_lapack_run_on_one_blas_thread(monkeypatch, blas_before):
    from lowrank_core._linalg.kernels import small

    seen, plain = [], np.linalg.svd

    def gives_up(matrices, values, exponents):
        values[:], exponents[:] = np.nan, 0
        return len(values)

    def spy(*args, **kwargs):
        seen.extend(blas_now().values())
        return plain(*args, **kwargs)

    monkeypatch.setattr(small, "small_values", gives_up)
    monkeypatch.setattr(np.linalg, "svd", spy)
    spectrum(STACK, workers=2)
    assert set(seen) == {1}
    assert blas_now() == blas_before


def test_settings_survive_calls_and_errors(blas_before):
    spectrum(STACK)
    spectrum(LARGE)
    truncate(STACK, 3)
    learning_sweep(STACK[:2], [1, 2], steps=2)
    assert blas_now() == blas_before
    for bad in (np.full((40, 48, 40), 1.7e308), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match=r"float64|finite"):
            spectrum(bad)
        assert blas_now() == blas_before
    with pytest.raises(ZeroDivisionError):
        truncate(STACK[0], lambda _: 1 // 0)
    assert blas_now() == blas_before


def test_settings_survive_an_interrupt(monkeypatch, blas_before):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.linalg, "svd", interrupted)
    for workers in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            spectrum(MEDIUM, method="lapack", workers=workers)
        assert blas_now() == blas_before


def test_every_thread_can_set_a_count_not_only_the_first(blas_before):
    alone = spectrum(LARGE[:500].astype(np.float64)).values
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: spectrum(LARGE[:500].astype(np.float64)).values).result()
        counts = pool.submit(counts_under_one_thread).result()
    assert counts == {1}
    assert np.array_equal(other, alone)
    assert blas_now() == blas_before


def test_the_callers_own_limits_still_work_afterwards():
    before = blas_now()
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(spectrum, STACK).result()
        spectrum(STACK)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert set(blas_now().values()) == {1}
        assert set(blas_now().values()) == {2}
    assert blas_now() == before


def counts_under_one_thread():
    with blas_threads(1):
        return set(blas_now().values())


def answers(large=True):
    """Results of every layer, as bytes; without the large matrix, eight of which at once are slow in any BLAS."""
    values = spectrum(STACK)
    learnt = learning_sweep(STACK[:2], [1, 3], steps=4, repeats=2)
    adam = learning_sweep(STACK[0], [2], steps=3, optimizer="adam")
    return [
        np.asarray(result).tobytes()
        for result in (
            values.values,
            spectrum(STACK.astype(np.float32)).values,
            spectrum(STACK[:6], rank=3, method="krylov").values,
            spectrum(LARGE if large else LARGE[:500], rank=4).values,
            spectrum(PRODUCT).values,
            truncate(STACK[:5], 3).B,
            truncate(PRODUCT, lambda s: int(rank_for_variance(s, 0.5).max())).A,
            error_sweep(values, [0, 4, 8]).errors,
            variance_captured(values),
            effective_rank(values),
            learnt.curves,
            learnt.gradient_norms,
            adam.curves,
        )
    ]


def test_eight_threads_at_once_get_the_same_bits_and_leave_blas_alone(blas_before):
    alone = {large: answers(large) for large in (True, False)}
    barrier = threading.Barrier(8, timeout=60)

    def concurrent(number):
        barrier.wait()
        large = number == 0
        return answers(large) == alone[large]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(concurrent, range(8)))
    assert blas_now() == blas_before


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_after_use_answers_alike():
    alone = answers()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert [result.get(120) for result in [pool.apply_async(answers) for _ in range(2)]] == [alone, alone]


def test_a_fresh_process_answers_alike():
    code = (
        "import sys, numpy as np, lowrank_core as lc; stack = np.random.default_rng(0).standard_normal((40, 48, 40)); "
        "sys.stdout.buffer.write(lc.spectrum(stack).values.tobytes())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == lowrank_core.spectrum(STACK).values.tobytes()


class InterruptedLock:
    """A lock that is acquired, and an interrupt before the block begins."""

    def __init__(self):
        self.lock = threading.RLock()
        self.release, self._is_owned = self.lock.release, self.lock._is_owned

    def __enter__(self):
        self.lock.acquire()
        raise KeyboardInterrupt

    def __exit__(self, *_):
        raise AssertionError("the block was never begun")


def test_an_interrupt_between_acquisition_and_block_leaves_a_lock_free():
    interrupted = InterruptedLock()
    with pytest.raises(KeyboardInterrupt):
        call_with_lock(interrupted, list)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(interrupted.lock.acquire, blocking=False).result()


def test_a_call_within_another_of_its_thread_leaves_the_lock_to_that():
    lock = threading.RLock()

    def fail():
        raise KeyboardInterrupt

    def outer():
        with pytest.raises(KeyboardInterrupt):
            call_with_lock(lock, fail)
        return lock._is_owned()

    assert call_with_lock(lock, outer)
    assert not lock._is_owned()
