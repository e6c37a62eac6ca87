"""How a learning sweep shares its runs out over workers."""

import numpy as np
import pytest

from lowrank_core import Spectrum, learning, learning_sweep, update_with_spectrum
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
def test_runs_are_shared_out_over_workers_the_longest_first(optimizer, task_work, pieces, monkeypatch):
    taken, learn = [], kernels.learn

    def noted(start, stop, *rest):
        taken.append((start, stop))
        learn(start, stop, *rest)

    monkeypatch.setattr(kernels, "learn", noted)
    monkeypatch.setattr(learning, "as_workers", lambda _: 3)
    monkeypatch.setattr(learning, "in_threads", lambda function, tasks, _: [function(task) for task in tasks])
    monkeypatch.setattr(learning, "TASK_WORK", task_work)
    learning_sweep(np.stack([UPDATE] * 20), [0, 1, 2], steps=5, repeats=3, optimizer=optimizer)
    assert taken == [
        (40 * rank + start, 40 * rank + min(start + piece, 40))
        for rank, piece in pieces.items()
        for start in range(0, 40, piece)
    ]


def test_a_task_is_no_more_than_a_fraction_of_a_seconds_work(monkeypatch):
    def noted(_, tasks, __):
        raise InterruptedError(tasks)

    monkeypatch.setattr(learning, "as_workers", lambda _: 3)
    monkeypatch.setattr(learning, "in_threads", noted)
    # 2²⁹ multiplications, where a run of rank 64 is ten steps of sixteen repeats of 64³.
    ones = np.ones((40, 64))
    of = Spectrum(ones, np.linalg.norm(ones, axis=-1), (64, 64), complete=True)
    with pytest.raises(InterruptedError) as shared:
        learning_sweep(of, [64], rules=["standard"], steps=30, repeats=16)
    assert shared.value.args[0] == [(start, min(start + 4, 40)) for start in range(0, 40, 4)]
