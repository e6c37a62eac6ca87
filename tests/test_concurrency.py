"""Every function of the public API from many threads and processes at once."""

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl

import lowrank_core as lc
from tests.blas import blas_now

RNG = np.random.default_rng(5)
STACK = RNG.standard_normal((24, 40, 36))
LARGE = RNG.standard_normal((530, 514))  # a smaller side beyond the limit of a worker's BLAS
CORE = RNG.standard_normal((4, 3, 9))
PRODUCT = lc.LowRankUpdate(RNG.standard_normal((5, 40, 6)), RNG.standard_normal((5, 6, 36)), 0.5)
KRONECKER = lc.KroneckerUpdate(STACK[:2, :5, :6], STACK[2:4, 6:9, :4], 2.0)
OF = lc.spectrum(STACK)
ONE = lc.spectrum(STACK[0])

# One call for every public function, on inputs that all threads share.
CALLS = {
    "KroneckerUpdate": lambda: lc.spectrum(KRONECKER).values,
    "LowRankUpdate": lambda: PRODUCT.balanced().to_dense(),
    "Spectrum": lambda: lc.Spectrum(OF.values, OF.norm, OF.shape, complete=True).values,
    "allocate_ranks": lambda: tuple(lc.allocate_ranks({"a": ONE, "b": ONE}, parameters=900).ranks.values()),
    "compare": lambda: (compared := lc.compare(PRODUCT, STACK[:5], rank=4)) and (compared.cosine, compared.rows.angles),
    "effective_rank": lambda: lc.effective_rank(OF),
    "equivalent_alpha": lambda: lc.equivalent_alpha(16, [8, 64], "rslora", to_rule="standard"),
    "error_sweep": lambda: lc.error_sweep(OF, None).errors,
    "facts_update": lambda: lc.facts_update(20, 24, rng=0),
    "learning_gain": lambda: lc.learning_gain(16, [8, 64], "standard"),
    "learning_sweep": lambda: (
        lc.learning_sweep(STACK[:2], [1, 3], steps=4, repeats=2).curves,
        lc.learning_sweep(STACK[0], [2], steps=3, optimizer="adam").curves,
    ),
    "low_rank_hadamard": lambda: lc.low_rank_hadamard(PRODUCT, PRODUCT).A,
    "low_rank_sum": lambda: lc.low_rank_sum([PRODUCT, PRODUCT], [1.0, -0.5]).B,
    "low_rank_tucker": lambda: lc.low_rank_tucker(STACK[0, :, :4], CORE, STACK[0, :3, :20]).A,
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
    """Return the answer of a public function, to the bit."""
    result = CALLS[name]()
    return [np.asarray(part).tobytes() for part in (result if isinstance(result, tuple) else (result,))]


def all_answers():
    return {name: answer(name) for name in CALLS}


def answers_on_one_blas_thread(_=None):
    """Return all answers, with the count of BLAS's threads set: older releases of OpenBLAS round by it."""
    with threadpoolctl.threadpool_limits(1, "blas"):
        return all_answers()


def test_every_public_function_is_called():
    results = {"Comparison", "ErrorSweep", "LearningSweep", "RankAllocation", "SpaceOverlap"}
    functions = {name for name in lc.__all__ if callable(getattr(lc, name)) and name not in results}
    assert set(CALLS) == functions


def test_eight_threads_in_every_function_at_once(blas_before):
    alone = all_answers()
    barrier = threading.Barrier(8, timeout=60)
    names = sorted(CALLS)

    def concurrent(number):
        barrier.wait()
        # Each begins elsewhere, so that different functions meet.
        return all(answer(name) == alone[name] for name in names[3 * number :] + names[: 3 * number])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(concurrent, range(8)))
    assert blas_now() == blas_before


def test_workers_under_a_pool_of_the_callers_own(blas_before):
    alone = lc.spectrum(STACK, workers=1).values, lc.truncate(STACK, 3, workers=1).B, lc.spectrum(LARGE).values

    def nested(number):
        result = lc.spectrum(STACK, workers=3).values, lc.truncate(STACK, 3, workers=2).B
        large = lc.spectrum(LARGE).values if number == 0 else alone[2]
        return all(np.array_equal(*pair) for pair in zip((*result, large), alone, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(nested, range(8)))
    assert blas_now() == blas_before


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_process_pool_answers_alike(start):
    alone = answers_on_one_blas_thread()
    with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        for answers in pool.map(answers_on_one_blas_thread, range(2)):
            assert not [name for name in CALLS if answers[name] != alone[name]]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dasks_schedulers_answer_alike(scheduler):
    dask = pytest.importorskip("dask")
    tasks = [dask.delayed(lc.spectrum)(update) for update in (*STACK[:4], PRODUCT)]
    result = dask.compute(*tasks, scheduler=scheduler, num_workers=2)
    for s, update in zip(result, (*STACK[:4], PRODUCT), strict=True):
        assert s.values.tobytes() == lc.spectrum(update).values.tobytes()


def test_values_survive_the_way_between_processes():
    for value in (OF, PRODUCT, lc.error_sweep(OF, [1]), lc.learning_sweep(STACK[0], [1], steps=1)):
        other = pickle.loads(pickle.dumps(value))
        assert type(other) is type(value)
        for field, content in vars(value).items():
            assert np.array_equal(getattr(other, field), content), field
