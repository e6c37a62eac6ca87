"""Every function of the door from many threads and processes at once, and interrupts that strike anywhere."""

import itertools
import multiprocessing
import pickle
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

import lowrank_core as lc
from lowrank_core._linalg import threads, thresholds
from lowrank_core._linalg.kernels import band
from lowrank_core._linalg.kernels import learning as kernels
from lowrank_core._linalg.threads import as_workers, blas_threads
from tests.internals.test_threads import blas_now

RNG = np.random.default_rng(5)
STACK = RNG.standard_normal((24, 40, 36))
LARGE = RNG.standard_normal((530, 514))  # a smaller side beyond the limit of a worker's BLAS
PRODUCT = lc.LowRankUpdate(RNG.standard_normal((5, 40, 6)), RNG.standard_normal((5, 6, 36)), 0.5)
OF = lc.spectrum(STACK)
ONE = lc.spectrum(STACK[0])

# One call for every function at the door, on inputs that all threads share.
DOOR = {
    "LowRankUpdate": lambda: PRODUCT.balanced().to_dense(),
    "Spectrum": lambda: lc.Spectrum(OF.values, OF.norm, OF.shape, complete=True).values,
    "allocate_ranks": lambda: tuple(lc.allocate_ranks({"a": ONE, "b": ONE}, parameters=900).ranks.values()),
    "effective_rank": lambda: lc.effective_rank(OF),
    "equivalent_alpha": lambda: lc.equivalent_alpha(16, [8, 64], "rslora", to_rule="standard"),
    "error_sweep": lambda: lc.error_sweep(OF, None).errors,
    "facts_update": lambda: lc.facts_update(20, 24, rng=0),
    "learning_gain": lambda: lc.learning_gain(16, [8, 64], "standard"),
    "learning_sweep": lambda: (
        lc.learning_sweep(STACK[:2], [1, 3], steps=4, repeats=2).curves,
        lc.learning_sweep(STACK[0], [2], steps=3, optimizer="adam").curves,
    ),
    "numerical_rank": lambda: lc.numerical_rank(OF),
    "power_rule": lambda: lc.power_rule(-0.25)(16, np.arange(100)),
    "rank_above_noise": lambda: lc.rank_above_noise(OF),
    "rank_for_error": lambda: lc.rank_for_error(OF, 0.3),
    "rank_for_ratio": lambda: lc.rank_for_ratio(OF, 0.3),
    "rank_for_variance": lambda: lc.rank_for_variance(OF, 0.9),
    "reconstruction_error": lambda: lc.reconstruction_error(OF, None, 0.7),
    "rslora": lambda: lc.rslora(16, np.arange(100)),
    "scaling_rule": lambda: lc.scaling_rule("rslora")(16, np.arange(100)),
    "spectrum": lambda: (
        lc.spectrum(STACK).values,
        lc.spectrum(STACK.astype(np.float32)).values,
        lc.spectrum(STACK[:6], rank=3, method="krylov").values,
        lc.spectrum(PRODUCT).values,
    ),
    "stable_rank": lambda: lc.stable_rank(OF),
    "standard": lambda: lc.standard(16, np.arange(100)),
    "style_update": lambda: lc.style_update(20, 24, rng=0),
    "truncate": lambda: (lc.truncate(STACK, 3).B, lc.truncate(PRODUCT, lambda s: int(lc.numerical_rank(s).max())).A),
    "unscaled": lambda: lc.unscaled(16, np.arange(100)),
    "update_with_spectrum": lambda: lc.update_with_spectrum(OF.values, (40, 36), rng=0),
    "variance_captured": lambda: lc.variance_captured(OF),
}


def answer(name):
    """What a function of the door gives, to the bit."""
    found = DOOR[name]()
    return [np.asarray(part).tobytes() for part in (found if isinstance(found, tuple) else (found,))]


def all_answers(_=None):
    return {name: answer(name) for name in DOOR}


@pytest.fixture(params=[1, 2])
def blas_before(request):
    """The process's own setting, whatever it may be."""
    with threadpoolctl.threadpool_limits(request.param, user_api="blas"):
        yield blas_now()


def test_every_function_at_the_door_is_called():
    results = {"ErrorSweep", "LearningSweep", "RankAllocation"}
    functions = {name for name in lc.__all__ if callable(getattr(lc, name)) and name not in results}
    assert set(DOOR) == functions


def test_eight_threads_in_every_function_at_once(blas_before):
    alone = all_answers()
    barrier = threading.Barrier(8, timeout=60)
    names = sorted(DOOR)

    def together(number):
        barrier.wait()
        # Each begins elsewhere, so that different functions meet.
        return all(answer(name) == alone[name] for name in names[3 * number :] + names[: 3 * number])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(together, range(8)))
    assert blas_now() == blas_before


def test_workers_under_a_pool_of_the_callers_own(blas_before):
    alone = lc.spectrum(STACK, workers=1).values, lc.truncate(STACK, 3, workers=1).B, lc.spectrum(LARGE).values

    def nested(number):
        found = lc.spectrum(STACK, workers=3).values, lc.truncate(STACK, 3, workers=2).B
        large = lc.spectrum(LARGE).values if number == 0 else alone[2]
        return all(np.array_equal(*pair) for pair in zip((*found, large), alone, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(nested, range(8)))
    assert blas_now() == blas_before


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_process_pool_answers_alike(start):
    alone = all_answers()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start)) as pool:
        assert list(pool.map(all_answers, range(2))) == [alone, alone]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dasks_schedulers_answer_alike(scheduler):
    dask = pytest.importorskip("dask")
    tasks = [dask.delayed(lc.spectrum)(update) for update in (*STACK[:4], PRODUCT)]
    found = dask.compute(*tasks, scheduler=scheduler, num_workers=2)
    for of, update in zip(found, (*STACK[:4], PRODUCT), strict=True):
        assert of.values.tobytes() == lc.spectrum(update).values.tobytes()


def test_values_survive_the_way_between_processes():
    for value in (OF, PRODUCT, lc.error_sweep(OF, [1]), lc.learning_sweep(STACK[0], [1], steps=1)):
        other = pickle.loads(pickle.dumps(value))
        assert type(other) is type(value)
        for field, held in vars(value).items():
            assert np.array_equal(getattr(other, field), held), field


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
            if heard.wait(5):
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
        call(updates, method="direct", workers=workers)
    assert blas_now() == blas_before
    # The chunks under way are finished: one for each worker, of a sixteenth of the batch.
    each = 1 if function == "spectrum" else len(updates) // 16
    assert len(begun) <= (1 if workers == 1 else workers * each)
    monkeypatch.undo()
    assert answer("spectrum") == all_answers()["spectrum"]


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
    assert answer("spectrum") == all_answers()["spectrum"]


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
        other = pool.submit(lc.spectrum, updates[0], method="direct")
        with pytest.raises(KeyboardInterrupt):
            lc.spectrum(updates[1], method="direct")
        # Held for the call that goes on, and put back when it is done.
        assert set(blas_now().values()) == {1}
        release.set()
        found = other.result(60)
    monkeypatch.undo()
    assert blas_now() == blas_before
    assert np.array_equal(found.values, lc.spectrum(updates[0]).values)


def interrupted_at(number):
    """Hold BLAS, with an interrupt at the n-th place where Python looks for one; None if there are fewer."""
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


def test_an_interrupt_at_any_place_of_the_gate_puts_blas_back(blas_before):
    with blas_threads(1):
        pass  # the controller is made once
    number = 0
    while place := interrupted_at(number := number + 1):
        assert blas_now() == blas_before, place
        # Nobody is left inside, and the lock is free: another thread comes in with another count.
        entered = threading.Event()

        def enter(entered=entered):
            with blas_threads(None):
                entered.set()

        other = threading.Thread(target=enter, daemon=True)
        other.start()
        assert entered.wait(60), place
        other.join(60)
    assert number > 10
