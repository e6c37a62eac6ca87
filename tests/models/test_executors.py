import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank_core import rank_for_variance
from lowrank_core.models import executors
from lowrank_core.models.executors import dask_cluster, local_processes, map_in_order
from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.merging import merge
from lowrank_core.models.operations.resizing import resize
from tests.models.models_on_disk import checkpoint_pair, fingerprint

NINETY_PERCENT = partial(rank_for_variance, fraction=0.9)


class Counting(ThreadPoolExecutor):
    """Threads that note how many tasks were submitted."""

    def __init__(self):
        super().__init__(3)
        self.submitted = 0

    def submit(self, function, /, *arguments, **keywords):
        self.submitted += 1
        return super().submit(function, *arguments, **keywords)


def test_results_come_in_order_whatever_finishes_first():
    with ThreadPoolExecutor(4) as executor:
        delays = [0.02, 0.0, 0.01, 0.0, 0.0]
        assert list(map_in_order(lambda i: time.sleep(delays[i]) or i, range(5), executor)) == [0, 1, 2, 3, 4]


def test_a_bounded_number_is_under_way():
    with Counting() as executor:
        for taken, result in enumerate(map_in_order(abs, range(1000), executor), 1):
            assert result == taken - 1
            assert executor.submitted <= taken + executors.LAYERS_IN_FLIGHT


def test_without_an_executor_each_is_made_when_it_is_asked_for():
    made = []
    results = map_in_order(made.append, range(5), None)
    next(results)
    next(results)
    assert made == [0, 1]


def test_closing_cancels_what_has_not_begun():
    started, turn = [], threading.Semaphore(1)

    def work(i):
        started.append(i)
        turn.acquire()
        return i

    with ThreadPoolExecutor(1) as executor:
        results = map_in_order(work, range(20), executor)
        assert next(results) == 0
        results.close()
        turn.release(20)
    assert len(started) <= 2


def test_an_error_of_a_task_is_raised_in_its_turn():
    with ThreadPoolExecutor(2) as executor:
        results = map_in_order(lambda i: 1 // (2 - i), range(4), executor)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_workers_get_absolute_paths_and_messages_those_given(tmp_path, rng, monkeypatch):
    checkpoint_pair(tmp_path, rng)
    monkeypatch.chdir(tmp_path)
    tensors = open_checkpoint("base.safetensors").tensors.values()
    assert {tensor.file for tensor in tensors} == {Path("base.safetensors")}
    assert {tensor.file for tensor in pickle.loads(pickle.dumps(list(tensors)))} == {tmp_path / "base.safetensors"}
    Path("empty").mkdir()
    with ThreadPoolExecutor(1) as executor, pytest.raises(FileNotFoundError, match=r"^no adapter in 'empty'"):
        resize("empty", "smaller", rank=1, executor=executor)


def test_a_tensor_in_memory_is_sent_under_its_own_name():
    (tensor,) = open_checkpoint({"a.weight": np.ones((2, 2))}).tensors.values()
    assert pickle.loads(pickle.dumps(tensor)).file == tensor.file


@pytest.fixture(scope="module")
def processes():
    with local_processes(2) as executor:
        yield executor


@pytest.fixture
def written_with(tmp_path, rng, monkeypatch):
    """Extract, resize and merge from relative paths with an executor; fingerprints and failures of what they wrote."""
    paths, _ = checkpoint_pair(tmp_path, rng, others=[("bad.weight", np.ones((2, 2)), np.full((2, 2), np.nan))])
    monkeypatch.chdir(tmp_path)

    def run(executor, name):
        calls = []
        reports = [
            extract(
                *(path.name for path in paths),
                f"{name}-extracted",
                rank=NINETY_PERCENT,
                executor=executor,
                progress=lambda *call: calls.append(call),
            ),
            resize(f"{name}-extracted", f"{name}-resized.safetensors", rank=2, executor=executor),
            merge([f"{name}-extracted"] * 2, f"{name}-merged", weights=[1, -2], executor=executor),
        ]
        assert reports[0].failures.keys() == {"bad"}
        assert [call[1:] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        tensors = [load_file(f"{name}-resized.safetensors")]
        tensors += [load_file(f"{name}-{verb}/adapter_model.safetensors") for verb in ("extracted", "merged")]
        return [report.totals for report in reports], tensors

    return run


def assert_same(one, other):
    for ours, theirs in zip(one[0], other[0], strict=True):
        # Without a base there is no norm of its weights.
        first, second = ({k: v for k, v in vars(totals).items() if v is not None} for totals in (ours, theirs))
        assert first == pytest.approx(second, rel=1e-9, abs=1e-12)
    for ours, theirs in zip(one[1], other[1], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            # One BLAS thread or several: the same to rounding.
            assert np.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-7)


def test_threads_write_what_one_thread_writes(written_with):
    alone = written_with(None, "alone")
    with ThreadPoolExecutor(3) as executor:
        assert_same(alone, written_with(executor, "threads"))
    assert fingerprint("alone-extracted/adapter_model.safetensors") == fingerprint(
        "threads-extracted/adapter_model.safetensors"
    )


def test_processes_write_what_one_thread_writes(written_with, processes):
    assert_same(written_with(None, "alone"), written_with(processes, "processes"))


def test_a_dask_cluster_writes_what_one_thread_writes(written_with):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        dask_cluster(cluster.scheduler_address) as executor,
    ):
        assert_same(written_with(None, "alone"), written_with(executor, "dask"))


def test_a_function_that_cannot_be_sent_leaves_nothing_behind(tmp_path, rng, processes):
    paths, _ = checkpoint_pair(tmp_path, rng)
    with pytest.raises(Exception, match=r"pickle|local object|lambda"):
        extract(*paths, tmp_path / "out", rank=lambda _: 2, executor=processes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def test_a_worker_that_dies_is_an_error_and_nothing_is_written(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    with pytest.raises(ChildProcessError, match=r"^one of 1 worker processes died"), local_processes(1) as executor:
        extract(*paths, tmp_path / "out", rank=_die, executor=executor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def _die(spectrum):
    os._exit(1)


def test_workers_do_not_outlive_a_parent_that_is_killed():
    code = (
        "import os, time\n"
        "from lowrank_core.models.executors import local_processes\n"
        "if __name__ == '__main__':\n"
        "    with local_processes(1) as executor:\n"
        "        print(executor.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        # The worker has its standard output from the parent: it is closed when both have ended, and not before.
        assert int(parent.stdout.readline()) != parent.pid
        parent.kill()
        assert parent.stdout.read() == ""


def test_workers_use_one_blas_thread(processes):
    assert processes.submit(_blas_threads).result() == {1}


def _blas_threads():
    """Threads of NumPy's own BLAS: SciPy, if something imports it later, brings another."""
    from threadpoolctl import threadpool_info

    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {library["num_threads"] for library in libraries if "scipy.libs" not in library["filepath"]}


def test_invalid_numbers_of_workers_and_addresses_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^workers must be at least 1; got 0"), local_processes(0):
        pass
    pytest.importorskip("distributed")
    for address in ("nowhere://x", "no-port"):
        with pytest.raises(ValueError, match="is not the address of a scheduler"), dask_cluster(address):
            pass
