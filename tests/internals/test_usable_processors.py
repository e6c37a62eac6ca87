"""Workers are as many as a container's quota of processor time amounts to, and never more than there are processors."""

import os

import pytest

from lowrank_core import _processors
from lowrank_core._processors import usable_processors
from lowrank_core._validation import as_workers

PROCESSORS = 64
V2, V1 = "0::{}\n", "12:memory:/x\n4:cpu,cpuacct:{}\n1:name=systemd:/x\n"


@pytest.fixture
def in_groups(tmp_path, monkeypatch):
    """Write what /proc and /sys have of the control groups of a process on 64 processors."""

    def write(groups, files):
        (tmp_path / "proc").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "mounted" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(_processors, "_PROCESS", tmp_path / "proc")
        monkeypatch.setattr(_processors, "_MOUNTED", tmp_path / "mounted")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(PROCESSORS)), raising=False)
        _processors._quota.cache_clear()

    yield write
    _processors._quota.cache_clear()


def of_v1(folder, quota, period=100_000):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2.format("/"), {"cpu.max": "200000 100000\n"}, 2),
        (V2.format("/"), {"cpu.max": "250000 100000\n"}, 3),
        (V2.format("/"), {"cpu.max": "10000 100000\n"}, 1),
        (V2.format("/"), {"cpu.max": "max 100000\n"}, PROCESSORS),
        (V2.format("/"), {"cpu.max": "99900000 100000\n"}, PROCESSORS),
        (V2.format("/a/b"), {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "500000 100000"}, 3),
        (V2.format("/kubepods/pod1"), {"cpu.max": "400000 100000"}, 4),
        (V2.format("/../pod1"), {"cpu.max": "400000 100000"}, 4),
        (V2.format("/"), {"cpu.max": "nonsense"}, PROCESSORS),
        (V2.format("/"), {}, PROCESSORS),
        (V1.format("/"), of_v1("cpu,cpuacct", 200_000), 2),
        (V1.format("/docker/1"), of_v1("cpu,cpuacct/docker/1", 100_000), 1),
        (V1.format("/docker/1"), of_v1("cpu", 75_000, 50_000), 2),
        (V1.format("/"), of_v1("cpu,cpuacct", -1), PROCESSORS),
        (V1.format("/"), of_v1("memory", 100_000), PROCESSORS),
        (V1.format("/") + V2.format("/"), of_v1("cpu,cpuacct", 600_000), 6),
        ("", {}, PROCESSORS),
    ],
)
def test_the_least_quota_of_the_groups_counts(in_groups, groups, files, expected):
    in_groups(groups, files)
    assert usable_processors() == as_workers(None) == expected


def test_without_control_groups_the_processors_count(in_groups, monkeypatch, tmp_path):
    in_groups("", {})
    monkeypatch.setattr(_processors, "_PROCESS", tmp_path / "none")
    assert usable_processors() == PROCESSORS
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors() == 1
