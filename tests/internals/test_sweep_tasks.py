"""How sweeps divide their work among workers."""

import numpy as np
import pytest

from lowrank_core import Spectrum, error_sweep, learning, learning_sweep, sweeps, update_with_spectrum
from lowrank_core._linalg.kernels import learning as kernels

UPDATE = update_with_spectrum([3.0, 2.0, 1.0, 0.5], (6, 4), rng=0)


@pytest.mark.parametrize(
    ("optimizer", "task_work", "pieces"),
    [
        # Forty runs a rank for three workers: a sixth of them each, as long as a task does not take too long …
        ("sgd", 2**40, {2: 7, 1: 7, 0: 7}),
        # … at 5 steps, 3 repeats and 4 columns 60·r² multiplications a run, …
        ("sgd", 820, {2: 3, 1: 7, 0: 7}),
        ("sgd", 5, {2: 1, 1: 1, 0: 5}),
        # … or 60·r·6, since Adam works on the whole update.
        ("adam", 1440, {2: 2, 1: 4, 0: 7}),
    ],
)
def test_runs_are_divided_among_workers_longest_first(optimizer, task_work, pieces, monkeypatch):
    taken, learn = [], kernels.learn

    def record(start, stop, *rest):
        taken.append((start, stop))
        learn(start, stop, *rest)

    monkeypatch.setattr(kernels, "learn", record)
    monkeypatch.setattr(learning, "as_workers", lambda _: 3)
    monkeypatch.setattr(learning, "in_threads", lambda function, tasks, _: [function(task) for task in tasks])
    monkeypatch.setattr(learning, "TASK_WORK", task_work)
    learning_sweep(np.stack([UPDATE] * 20), [0, 1, 2], steps=5, repeats=3, optimizer=optimizer)
    assert taken == [
        (40 * rank + start, 40 * rank + min(start + piece, 40))
        for rank, piece in pieces.items()
        for start in range(0, 40, piece)
    ]


def test_a_task_is_at_most_about_a_second_of_work(monkeypatch):
    def record(_, tasks, __):
        raise InterruptedError(tasks)

    monkeypatch.setattr(learning, "as_workers", lambda _: 3)
    monkeypatch.setattr(learning, "in_threads", record)
    # 2²⁹ multiplications, where a run of rank 64 is ten steps of sixteen repeats of 64³.
    ones = np.ones((40, 64))
    spectra = Spectrum(ones, np.linalg.norm(ones, axis=-1), (64, 64), complete=True)
    with pytest.raises(InterruptedError) as raised:
        learning_sweep(spectra, [64], rules=["standard"], steps=30, repeats=16)
    assert raised.value.args[0] == [(start, min(start + 4, 40)) for start in range(0, 40, 4)]


@pytest.mark.parametrize(
    ("size", "count", "values", "ranks", "chunk"),
    [(sweeps.TASK_SIZE, 600, 1000, 3, 256), (1, 3, 4, 3, 1), (4, 9, 1, 0, 4)],
)
def test_a_sweep_divides_spectra_by_their_values_and_errors(size, count, values, ranks, chunk, monkeypatch):
    taken = []

    def record(function, tasks, _):
        taken.extend(tasks)
        return [function(task) for task in tasks]

    monkeypatch.setattr(sweeps, "in_threads", record)
    monkeypatch.setattr(sweeps, "TASK_SIZE", size)
    ones = np.ones((count, values))
    spectra = Spectrum(ones, np.linalg.norm(ones, axis=-1), (values, values), complete=True)
    rules = ("standard", "rslora", "unscaled", lambda alpha, rank: alpha + 0.0 * rank)
    error_sweep(spectra, range(ranks), alpha=[1.0, 2.0], rules=rules)
    assert taken == [slice(start, start + chunk) for start in range(0, count, chunk)]
