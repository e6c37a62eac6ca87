"""The lock on BLAS's threads: whom it serves when, and that nothing leaves it taken."""

import multiprocessing
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest

from lowrank_core import spectrum
from lowrank_core._linalg import threads
from lowrank_core._linalg.threads import blas_threads
from tests.blas import blas_now

RNG = np.random.default_rng(0)
MEDIUM = RNG.standard_normal((70, 66))  # one BLAS thread
LARGE = RNG.standard_normal((520, 514))  # BLAS's own threads


def test_blas_threads_are_set_and_restored(blas_before):
    with blas_threads(1):
        assert set(blas_now().values()) == {1}
        with blas_threads(1):
            assert set(blas_now().values()) == {1}
        assert set(blas_now().values()) == {1}
    assert blas_now() == blas_before
    with blas_threads(None):
        assert blas_now() == blas_before
    assert blas_now() == blas_before


def test_a_call_that_wants_another_count_waits_for_those_under_way(blas_before):
    order, holding, release = [], threading.Event(), threading.Event()

    def hold():
        with blas_threads(1):
            holding.set()
            release.wait(60)
            order.append("released")

    def other():
        with blas_threads(None):
            order.append("acquired")
            assert blas_now() == blas_before

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(60)
    waiter = threading.Thread(target=other)
    waiter.start()
    release.set()
    holder.join(60)
    waiter.join(60)
    assert order == ["released", "acquired"]
    assert blas_now() == blas_before


def test_a_count_set_by_one_thread_is_restored_by_another(blas_before):
    first_acquired, second_acquired, first_released, done = (threading.Event() for _ in range(4))

    def first():
        with blas_threads(1):
            first_acquired.set()
            assert second_acquired.wait(60)
        first_released.set()
        done.wait(60)  # lives on, as a pool's threads do

    def last():
        assert first_acquired.wait(60)
        with blas_threads(1):
            second_acquired.set()
            assert first_released.wait(60)
            assert set(blas_now().values()) == {1}

    threads = [threading.Thread(target=target) for target in (first, last)]
    for thread in threads:
        thread.start()
    threads[1].join(60)
    assert blas_now() == blas_before
    done.set()
    threads[0].join(60)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_under_the_lock_can_take_it():
    with blas_threads(1), multiprocessing.get_context("fork").Pool(1) as pool:
        # Another count than the one set: the child would wait for ever for a holder that it does not have.
        result = pool.apply_async(spectrum, (LARGE,), {"rank": 2}).get(120)
    assert result.values.shape == (2,)


def test_a_child_begins_with_blas_as_before_the_lock_and_without_holders(blas_before):
    with blas_threads(1):
        threads._reset_after_fork()
        assert blas_now() == blas_before
        # One more holder, of another count: with those of the parent it would wait for ever.
        with blas_threads(None):
            assert blas_now() == blas_before
    assert blas_now() == blas_before


@pytest.mark.parametrize("interrupted", ["acquire", "release"])
def test_the_lock_is_released_whatever_interrupts_it(monkeypatch, interrupted):
    calls = []

    class Lock:
        def acquire(self, _holder, _count):
            calls.append("acquire")
            if interrupted == "acquire":
                raise KeyboardInterrupt

        def release(self, _holder):
            calls.append("release")
            if interrupted == "release" and calls.count("release") == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(threads, "_blas_lock", Lock())
    with pytest.raises(KeyboardInterrupt), blas_threads(1):
        calls.append("inside")
    after = ["release"] if interrupted == "acquire" else ["inside", "release", "release"]
    assert calls == ["acquire", *after]


def registered():
    """Number of calls that have the lock or wait for it."""
    return len(threads._blas_lock._calls)


def until(condition):
    """Wait until something is so, for a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def start(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def test_calls_are_served_in_the_order_in_which_they_come(blas_before):
    served, wanted = [], [1, 1, None, 1, None, None, 1]

    def call(number, count):
        with blas_threads(count):
            served.append(number)

    with blas_threads(2):
        callers = []
        for number, count in enumerate(wanted):
            callers.append(start(call, number, count))
            until(lambda number=number: registered() == number + 2)
        assert served == []
    for caller in callers:
        caller.join(60)
    # Consecutive calls that want the same count share the lock, and may overtake each other.
    assert [wanted[number] for number in served] == wanted
    assert blas_now() == blas_before


def test_calls_that_want_the_same_count_are_under_way_together():
    barrier = threading.Barrier(4, timeout=60)

    def call():
        with blas_threads(1):
            barrier.wait()  # passes only if four calls have the lock at once

    callers = [start(call) for _ in range(4)]
    for caller in callers:
        caller.join(60)
    assert not barrier.broken
    assert registered() == 0


def test_a_large_call_waits_for_no_small_call_that_comes_after_it(monkeypatch, blas_before):
    # Counted in turns: small decompositions that begin after the large call has come, and before its own.
    turns, came, stop = [], [], threading.Event()
    svd, is_next, sizes = np.linalg.svd, threads._blas_lock._is_next, {MEDIUM.shape[-1]: "small"}

    def counted(matrices, **options):
        turns.append(sizes.get(matrices.shape[-1], "large"))
        return svd(matrices, **options)

    def noting(holder):
        if threads._blas_lock._calls[holder].threads is None and not came:
            came.append(len(turns))
        return is_next(holder)

    def many_small_calls():
        while not stop.is_set():
            spectrum(MEDIUM, method="lapack")

    monkeypatch.setattr(np.linalg, "svd", counted)
    monkeypatch.setattr(threads._blas_lock, "_is_next", noting)
    callers = [start(many_small_calls) for _ in range(4)]
    overtaking = []
    for _ in range(5):
        until(lambda enough=len(turns) + 20: len(turns) > enough)  # noqa: B008 - as many as there are now
        came.clear()
        spectrum(LARGE, method="lapack")
        overtaking.append(turns[came[0] :].index("large"))
    stop.set()
    for caller in callers:
        caller.join(60)
    # Those that have the lock when the large call comes may all be about to begin.
    assert max(overtaking) <= len(callers), overtaking
    assert blas_now() == blas_before


def test_a_call_within_one_of_the_same_thread_and_count_is_served_though_others_wait(blas_before):
    served = []

    def other():
        with blas_threads(None):
            served.append("other")

    with blas_threads(1):
        waiting = start(other)
        until(lambda: registered() == 2)
        with blas_threads(1):
            served.append("inner")
    waiting.join(60)
    assert served == ["inner", "other"]
    assert blas_now() == blas_before


REFUSAL = "within another call of it that is under way in the same thread, as a signal handler.*set a flag"


@pytest.fixture
def on_signal(monkeypatch):
    """Have a signal handler call a function; returns the list of what it raised, with None for nothing."""
    outcomes = []

    def install(function):
        def handler(*_):
            try:
                function()
            except RuntimeError as error:
                outcomes.append(str(error))
            else:
                outcomes.append(None)

        monkeypatch.setattr(signal, "before", signal.signal(signal.SIGUSR1, handler), raising=False)
        return outcomes

    yield install
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_call_of_a_signal_handler_within_a_call_is_refused_in_words(monkeypatch, blas_before, on_signal):
    svd = np.linalg.svd

    def interrupted(matrices, **options):
        if matrices.shape[-1] == MEDIUM.shape[-1]:
            signal.raise_signal(signal.SIGUSR1)
        return svd(matrices, **options)

    outcomes = on_signal(lambda: spectrum(LARGE, method="lapack"))
    exact = spectrum(MEDIUM, method="lapack").values
    monkeypatch.setattr(np.linalg, "svd", interrupted)
    assert np.array_equal(spectrum(MEDIUM, method="lapack").values, exact)
    (outcome,) = outcomes
    assert re.search(REFUSAL, outcome)
    assert blas_now() == blas_before
    assert registered() == 0


def test_a_call_of_a_signal_handler_within_a_call_that_waits_is_refused_in_words(blas_before, on_signal):
    outcomes, release = on_signal(lambda: spectrum(LARGE, method="lapack")), threading.Event()
    main = threading.main_thread().ident

    def hold():
        with blas_threads(None):
            assert release.wait(60)

    def interrupt():
        until(lambda: registered() == 2)
        while not outcomes:  # one that comes as Python goes to sleep is handled with the next
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.1)
        release.set()

    helpers = [start(hold)]
    until(lambda: registered() == 1)
    helpers.append(start(interrupt))
    spectrum(MEDIUM, method="lapack")
    for helper in helpers:
        helper.join(60)
    assert all(re.search(REFUSAL, outcome) for outcome in outcomes)
    assert blas_now() == blas_before
    assert registered() == 0


def called_at(number, count):
    """Take the lock, with a call at the n-th place where Python handles signals; return the place and its outcome."""
    places, place, outcome = 0, None, None

    def look(frame, event, _):
        nonlocal places, place, outcome
        if event not in {"call", "c_return"} or frame.f_code.co_filename == __file__:
            return
        places += 1
        if places == number:
            place = f"{frame.f_code.co_name}, line {frame.f_lineno}"
            try:
                with blas_threads(count):
                    outcome = set(blas_now().values())
            except RuntimeError as error:
                outcome = str(error)

    before = sys.getprofile()
    try:
        sys.setprofile(look)
        with blas_threads(1):
            sys.setprofile(None)
            inside = set(blas_now().values())
            sys.setprofile(look)
    finally:
        sys.setprofile(before)
    return place, outcome, inside


@pytest.mark.parametrize("count", [1, 2, None])
def test_a_call_anywhere_in_the_lock_is_served_or_refused(blas_before, count):
    with blas_threads(1):
        pass  # the controller is made once
    own = set(blas_before.values()) if count is None else {count}
    outcomes, number = [], 0
    while True:
        results = []
        caller = start(lambda number=number, results=results: results.append(called_at(number, count)))
        caller.join(60)
        assert results, number  # or the call waits for itself for ever
        place, outcome, inside = results[0]
        assert inside == {1}, place
        assert blas_now() == blas_before, place
        assert registered() == 0, place
        if number and place is None:
            break
        if place is not None:
            outcomes.append(outcome)
            assert outcome == own or re.search(REFUSAL, outcome), place
        number += 1
    # Served before the lock is asked for, refused while it is being taken or given back, served again at the end.
    assert outcomes[0] == own
    assert any(isinstance(outcome, str) for outcome in outcomes)
