"""A census has one row an adapter, whoever makes it, and however often it was killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models.executors import local_processes
from lowrank_core.models.inspection.census import adapter_row, census, find_adapters
from lowrank_core.models.inspection.census_rows import read_census, to_table
from lowrank_core.models.results import to_json

RANKS = (1, 2, 4)
# After ten adapters it waits to be killed.
HALF_A_RUN = """
import sys, time
from lowrank_core.models.inspection.census import census
census(sys.argv[1], ranks=[1, 2, 4], jsonl=sys.argv[2], progress=lambda _, done, __: done < 10 or time.sleep(3600))
"""


def kohya(seed: int, layers: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        tensors[f"lora_unet_{layer}.lora_down.weight"] = rng.standard_normal((4, 12)).astype(np.float32)
        tensors[f"lora_unet_{layer}.lora_up.weight"] = rng.standard_normal((10, 4)).astype(np.float32)
        tensors[f"lora_unet_{layer}.alpha"] = np.array(2.0, np.float32)
    return tensors


def make_adapters(folder: Path, count: int) -> None:
    """Make kohya files and PEFT folders by turns, a damaged one and a checkpoint among them."""
    for index in range(count):
        if index % 2:
            peft = folder / f"peft{index:03}"
            peft.mkdir(parents=True)
            rng = np.random.default_rng(index)
            factors = {
                "base_model.model.q.lora_A.weight": rng.standard_normal((3, 8)).astype(np.float32),
                "base_model.model.q.lora_B.weight": rng.standard_normal((6, 3)).astype(np.float32),
            }
            save_file(factors, peft / "adapter_model.safetensors")
            (peft / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
        else:
            folder.mkdir(exist_ok=True)
            save_file(kohya(index), folder / f"kohya{index:03}.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "kohya000.safetensors").read_bytes()[:200])
    save_file({"model.weight": np.eye(3, dtype=np.float32)}, folder / "checkpoint.safetensors")


def test_a_row_says_what_numpy_says_of_the_product(tmp_path):
    tensors = kohya(5)
    save_file(tensors, tmp_path / "one.safetensors")
    [row] = census(tmp_path, ranks=RANKS)
    products = [
        2 / 4 * tensors[f"lora_unet_{i}.lora_up.weight"].astype(float) @ tensors[f"lora_unet_{i}.lora_down.weight"]
        for i in range(2)
    ]
    squares = [np.linalg.svd(product, compute_uv=False) ** 2 for product in products]
    energy = sum(values.sum() for values in squares)
    assert row.norm == pytest.approx(np.sqrt(energy), rel=1e-6)
    captured = [sum(values[:rank].sum() for values in squares) / energy for rank in RANKS]
    assert row.variance_captured == pytest.approx(captured, rel=1e-6)
    assert row.best_error[:2] == pytest.approx(np.sqrt(1 - np.array(captured[:2])), rel=1e-5)
    assert (row.format, row.layers, row.failed_layers, row.adapter_ranks) == ("kohya", 2, 0, (4,))
    assert (row.smallest_scaling, row.largest_scaling) == (0.5, 0.5)
    assert row.parameters == 2 * 4 * (12 + 10)


def test_every_adapter_has_its_row_in_order_and_a_checkpoint_none(tmp_path):
    make_adapters(tmp_path, 6)
    rows = census(tmp_path, ranks=RANKS)
    names = [Path(row.path).name for row in rows]
    expected = [
        "cut.safetensors",
        *(f"kohya{i:03}.safetensors" for i in (0, 2, 4)),
        *(f"peft{i:03}" for i in (1, 3, 5)),
    ]
    assert names == expected
    assert "not a valid safetensors file" in rows[0].failure
    assert all(row.failure is None and row.layers for row in rows[1:])
    assert len(find_adapters(tmp_path)) == len(rows) + 1


def test_a_folder_that_may_not_be_listed_is_a_row(tmp_path, monkeypatch):
    make_adapters(tmp_path, 2)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert tmp_path / "closed" in find_adapters(tmp_path)


def test_a_row_is_complete_only_without_failures_and_other_tensors(write_peft):
    for folder, more in (("whole", {}), ("more", {"h.0.mlp.weight": np.ones((3, 3), np.float32)})):
        factors = {f"h.0.proj.lora_{side}.weight": np.ones((2, 2), np.float32) for side in "AB"}
        (row,) = census(write_peft(factors | more, folder), ranks=RANKS)
        assert (row.complete, row.failure) == (not more, None)


def test_threads_and_processes_give_the_rows_that_one_thread_gives(tmp_path):
    make_adapters(tmp_path, 6)
    alone = census(tmp_path, ranks=RANKS)
    with ThreadPoolExecutor(3) as threads:
        assert census(tmp_path, ranks=RANKS, executor=threads) == alone
    with local_processes(2) as processes:
        assert census(tmp_path, ranks=RANKS, executor=processes, jsonl=tmp_path / "c.jsonl") == alone
    assert {row.path: row for row in read_census(tmp_path / "c.jsonl")} == {row.path: row for row in alone}


def test_a_run_killed_half_way_goes_on_where_it_stopped(tmp_path):
    adapters, jsonl = tmp_path / "adapters", tmp_path / "census.jsonl"
    make_adapters(adapters, 20)
    uninterrupted = census(adapters, ranks=RANKS)
    with subprocess.Popen([sys.executable, "-c", HALF_A_RUN, str(adapters), str(jsonl)]) as process:
        while not (jsonl.exists() and jsonl.read_bytes().count(b"\n") >= 5):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = {row.path for row in read_census(jsonl)}
    assert 5 <= len(before) < len(uninterrupted)
    made = []
    resumed = census(adapters, ranks=RANKS, jsonl=jsonl, progress=lambda path, *_: made.append(path))
    assert resumed == uninterrupted
    assert before.isdisjoint(made)
    assert sorted(read_census(jsonl), key=lambda row: row.path) == list(uninterrupted)


@pytest.mark.parametrize("left", [1, 9, 10, 200, -1])
def test_a_last_line_cut_short_is_made_again(left, tmp_path):
    adapters, jsonl = tmp_path / "adapters", tmp_path / "census.jsonl"
    make_adapters(adapters, 4)
    rows = census(adapters, ranks=RANKS, jsonl=jsonl)
    *whole, last = jsonl.read_bytes().splitlines(keepends=True)
    jsonl.write_bytes(b"".join(whole) + last[:left])
    assert len(read_census(jsonl)) == len(whole)
    assert census(adapters, ranks=RANKS, jsonl=jsonl) == rows
    assert sorted(jsonl.read_bytes().splitlines()) == sorted(line.rstrip(b"\n") for line in (*whole, last))


def test_an_adapter_that_changed_is_read_again_and_a_deleted_one_keeps_its_row(tmp_path):
    adapters, jsonl = tmp_path / "adapters", tmp_path / "census.jsonl"
    make_adapters(adapters, 4)
    first = census(adapters, ranks=RANKS, jsonl=jsonl)
    save_file(kohya(99, layers=3), adapters / "kohya002.safetensors")
    (adapters / "kohya000.safetensors").unlink()
    made = []
    second = census(adapters, ranks=RANKS, jsonl=jsonl, progress=lambda path, *_: made.append(Path(path).name))
    # A checkpoint has no row to be remembered by.
    assert made == ["checkpoint.safetensors", "kohya002.safetensors"]
    changed = adapter_row(adapters / "kohya002.safetensors", ranks=RANKS)
    assert changed.layers == 3
    gone = str(adapters / "kohya000.safetensors")
    assert second == tuple(changed if row.path == changed.path else row for row in first if row.path != gone)
    assert gone in {row.path for row in read_census(jsonl)}


def test_an_adapter_whose_configuration_alone_changed_is_read_again(tmp_path):
    adapters, jsonl = tmp_path / "adapters", tmp_path / "census.jsonl"
    make_adapters(adapters, 3)
    census(adapters, ranks=RANKS, jsonl=jsonl)
    config = min(adapters.rglob("adapter_config.json"))
    config.write_text(config.read_text() + "\n")
    made = []
    census(adapters, ranks=RANKS, jsonl=jsonl, progress=lambda path, *_: made.append(Path(path)))
    # A checkpoint has no row to be remembered by.
    assert made == [adapters / "checkpoint.safetensors", config.parent]


def test_a_pickled_adapter_that_changed_is_read_again(tmp_path):
    pickled, jsonl = tmp_path / "adapters" / "adapter_model.bin", tmp_path / "census.jsonl"
    pickled.parent.mkdir()
    (pickled.parent / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    pickled.write_bytes(b"")
    (first,) = census(pickled.parent, ranks=RANKS, jsonl=jsonl)
    pickled.write_bytes(b"no pickle")
    (second,) = census(pickled.parent, ranks=RANKS, jsonl=jsonl)
    assert "is empty" in first.failure
    assert "is empty" not in second.failure


def test_a_file_of_another_census_is_refused_and_left_alone(tmp_path):
    make_adapters(tmp_path, 2)
    jsonl = tmp_path / "census.jsonl"
    census(tmp_path, ranks=[1], jsonl=jsonl)
    before = jsonl.read_bytes()
    with pytest.raises(ValueError, match="is a census with the ranks 1, and not 1,2,4"):
        census(tmp_path, ranks=RANKS, jsonl=jsonl)
    assert jsonl.read_bytes() == before
    notes = tmp_path / "notes.txt"
    for content in (b"my notes\n", b"my notes", b'{"path": "x"}\n', b"[]\n", b"\xff\n"):
        notes.write_bytes(content)
        with pytest.raises(ValueError, match=r"^line 1 of .* is not a row of a census"):
            census(tmp_path, ranks=RANKS, jsonl=notes)
        assert notes.read_bytes() == content


def test_rows_are_the_same_through_json_and_make_a_table_with_one_set_of_columns(tmp_path):
    make_adapters(tmp_path, 3)
    rows = census(tmp_path, ranks=RANKS, jsonl=tmp_path / "c.jsonl")
    assert read_census(tmp_path / "c.jsonl") == rows
    assert all(json.loads(json.dumps(to_json(row), allow_nan=False))["path"] == row.path for row in rows)
    table = to_table(rows)
    assert len({tuple(line) for line in table}) == 1
    assert table[1]["best_error_1"] == rows[1].best_error[0]
    assert table[0]["best_error_1"] is None


def test_an_interrupt_keeps_the_rows_made_and_submits_no_more(tmp_path):
    make_adapters(tmp_path / "adapters", 4)

    def interrupt(*_):
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as threads, pytest.raises(KeyboardInterrupt):
        census(tmp_path / "adapters", ranks=RANKS, executor=threads, jsonl=tmp_path / "c.jsonl", progress=interrupt)
    assert len(read_census(tmp_path / "c.jsonl")) <= 1


def test_links_to_nothing_and_loops_of_links_are_failures_beside_the_others(tmp_path):
    make_adapters(tmp_path, 2)
    for name, target in (("loop.safetensors", "loop.safetensors"), ("lost.safetensors", "absent"), ("folder", ".")):
        (tmp_path / name).symlink_to(tmp_path / target)
    failures = {Path(row.path).name: row.failure for row in census(tmp_path, ranks=RANKS)}
    assert "link to nothing" in failures["loop.safetensors"]
    assert "link to nothing" in failures["lost.safetensors"]
    assert failures["kohya000.safetensors"] is None
    assert "folder" not in failures


def test_a_path_that_is_not_a_folder_and_empty_ranks_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        census(tmp_path / "file")
    with pytest.raises(ValueError, match=r"^rank"):
        census(tmp_path, ranks=[])
    assert census(tmp_path) == ()


def test_a_dask_cluster_gives_the_rows_that_one_thread_gives(tmp_path):
    distributed = pytest.importorskip("distributed")
    make_adapters(tmp_path, 20)
    alone = census(tmp_path, ranks=RANKS)
    quiet = {"dashboard_address": None, "processes": False, "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        assert census(tmp_path, ranks=RANKS, executor=client.get_executor(pure=False)) == alone
