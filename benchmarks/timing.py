"""Measure ways to one answer side by side, each peer at its better number of threads, every answer checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.cases import Case, Contender

# A first call beyond this many seconds counts as a timing, and one more round as enough.
LONG = 2.0
# Seconds before an entry is timed: threads of BLAS go on waiting for work for a while, on the cores of whoever is next.
PAUSE = 0.1
# A peer this many times slower than the fastest is timed once.
OUT_OF_THE_RUNNING = 1.5


@dataclass(frozen=True)
class Entry:
    """A contender at a number of threads; None is its default."""

    contender: Contender
    threads: int | None


@dataclass(frozen=True)
class Timing:
    """The best time of an entry, and the error of its answer."""

    name: str
    threads: int | None
    seconds: float
    error: float


@dataclass(frozen=True)
class Outcome:
    """The result of a contest: the peers at their better threads, the fastest first, and the rival among them."""

    case: str
    unit: str
    bound: float
    ours: Timing
    peers: tuple[Timing, ...]
    rival: Timing
    limits: tuple[Timing, ...]

    def over(self, peer: Timing) -> float:
        """Return the time of a peer over ours."""
        return peer.seconds / self.ours.seconds

    @property
    def ratio(self) -> float:
        """The time of the rival over ours."""
        return self.over(self.rival)

    @property
    def right(self) -> bool:
        """Whether our answer is within its bound."""
        return self.ours.error <= self.bound


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Limit BLAS, OpenMP and torch to `count` threads; None does not change them."""
    if count is None:
        yield
        return
    torch: Any = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    with threadpool_limits(count):
        if torch:
            torch.set_num_threads(count)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def contest(case: Case, *, rounds: int = 3, least: float = 0.25) -> Outcome:
    """Measure every contender in turn, `rounds` times, and keep the best time of each.

    Parameters
    ----------
    case : Case
    rounds : int
        Of the fastest peers and of ours; other peers have one.
    least : float
        Seconds that an entry is called for in a round, at least once.

    Raises
    ------
    RuntimeError
        If a peer's answer is wrong: it answers another question.
    """
    ours = Entry(case.ours, None)
    entries = [ours, *_entries(case.peers)]
    warm = {entry: _warm(case, entry) for entry in entries}
    errors = {entry: error for entry, (_, error) in warm.items()}
    best = {entry: seconds if _long(entry, seconds) else _timed(entry, least) for entry, (seconds, _) in warm.items()}
    rivals = _rivals(case, errors, ours)
    fastest = min(best[entry] for entry in rivals)
    running = [ours, *(entry for entry in rivals if best[entry] <= OUT_OF_THE_RUNNING * fastest)]
    more = min(rounds - 1, 1) if any(_long(entry, best[entry]) for entry in running) else rounds - 1
    for _ in range(more):
        for entry in running:
            best[entry] = min(best[entry], _timed(entry, least))
    timings = {entry: Timing(entry.contender.name, entry.threads, best[entry], errors[entry]) for entry in entries}
    return Outcome(
        case.name,
        case.unit,
        case.bound,
        timings[ours],
        _better_threads([timings[entry] for entry in entries[1:]]),
        min((timings[entry] for entry in rivals), key=lambda timing: timing.seconds),
        tuple(_limit(limit, rounds, least) for limit in case.limits),
    )


def _rivals(case: Case, errors: dict[Entry, float], ours: Entry) -> list[Entry]:
    """Return the peers to compare with: those as exact as ours where that counts, the most exact ones if none is."""
    peers = [entry for entry in errors if entry != ours]
    if not case.by_exactness:
        return peers
    # By name: a difference in rounding between two thread settings must not exclude the faster one.
    worst = {peer.contender.name: 0.0 for peer in peers}
    for peer in peers:
        worst[peer.contender.name] = max(worst[peer.contender.name], errors[peer])
    needed = max(errors[ours], min(worst.values()))
    return [peer for peer in peers if worst[peer.contender.name] <= needed]


def _entries(peers: tuple[Contender, ...]) -> list[Entry]:
    return [Entry(peer, count) for peer in peers for count in ((1, None) if peer.blas else (None,))]


def _warm(case: Case, entry: Entry) -> tuple[float, float]:
    """Call once, and return the time and the error."""
    with threads(entry.threads):
        start = time.perf_counter()
        answer = entry.contender.call()
        seconds = time.perf_counter() - start
    error = case.error(answer)
    if entry.contender is not case.ours and not error <= case.peer_bound:
        raise RuntimeError(
            f"{case.name}: {entry.contender.name} errs by {error:.3g} {case.unit}, so it answers another question."
        )
    return seconds / entry.contender.fraction, error


def shortest(call: Callable[[], Any], least: float = 0.2) -> float:
    """Return the shortest time of the calls within `least` seconds, after one that is not timed."""
    call()
    best, until = np.inf, time.perf_counter() + least
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            return best


def _long(entry: Entry, seconds: float) -> bool:
    return seconds * entry.contender.fraction > LONG


def _timed(entry: Entry, least: float) -> float:
    """Call for `least` seconds, at least once, and return the shortest time."""
    time.sleep(PAUSE)
    best, until = np.inf, time.perf_counter() + least
    with threads(entry.threads):
        while True:
            start = time.perf_counter()
            answer = entry.contender.call()
            end = time.perf_counter()
            best = min(best, answer if entry.contender.own_clock else end - start)
            if end >= until:
                return best / entry.contender.fraction


def _better_threads(timings: list[Timing]) -> tuple[Timing, ...]:
    better: dict[str, Timing] = {}
    for timing in sorted(timings, key=lambda timing: timing.seconds):
        better.setdefault(timing.name, timing)
    return tuple(better.values())


def _limit(limit: Contender, rounds: int, least: float) -> Timing:
    entry = Entry(limit, None)
    return Timing(limit.name, None, min(_timed(entry, least) for _ in range(rounds)), 0.0)
