"""Whether a process that wrote an output may still run."""

import os

import pytest

from lowrank_core.models.files import atomic


def test_no_signal_is_sent_where_it_would_end_a_process(monkeypatch):
    # On Windows signal 0 is Ctrl-C.
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    monkeypatch.setattr(os, "name", "nt")
    assert atomic._may_run(os.getpid())
