"""How many processors this process may use: those it may run on, and what a container's quota leaves of their time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["usable_processors"]

_PROCESS = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Return the number of processors that this process may run on, or that a quota of its control group amounts to.

    Part of a processor counts as one: a thread can use it.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota())))


@cache
def _quota() -> float:
    """Return the processors that the least quota of all control groups of the process amounts to, infinite without one.

    A group is within all groups above it, whose quotas are shared. In a container the path may be that of the host,
    and only an end of it, or nothing, is below what is mounted.
    """
    try:
        groups = _PROCESS.read_text(encoding="utf-8").splitlines()
    except OSError:  # there are none, as on macOS
        return math.inf
    quotas = (quota for group in groups for quota in _quotas(*group.split(":", 2)[1:]))
    return min(quotas, default=math.inf)


def _quotas(controllers: str, path: str) -> Iterator[float]:
    """Yield the quotas of a control group and of those above it, of version 2 (without controllers) or of version 1."""
    if controllers and "cpu" not in controllers.split(","):
        return
    mounted = [_MOUNTED / controllers, _MOUNTED / "cpu"] if controllers else [_MOUNTED, _MOUNTED / "unified"]
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for place in mounted:
        for depth in range(len(parts) + 1):
            yield from _quota_of(place.joinpath(*parts[:depth]), version=1 if controllers else 2)


def _quota_of(group: Path, version: int) -> Iterator[float]:
    """Yield the quota of one control group, as a number of processors, where it has one."""
    try:
        if version == 1:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        else:
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        # "max", and -1 in version 1, are no quota.
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return
