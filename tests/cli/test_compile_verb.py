"""``lowrank compile``: every kernel on disk, or in words why not."""

import pytest

from lowrank_core.cli.app import main
from lowrank_core.compilation import compile_kernels


def test_the_verb_says_where_and_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{len(compile_kernels().kernels)} kernels in ")
    assert compile_kernels().folder in printed.replace("\n", "")


def test_where_nothing_can_be_written_the_verb_says_what_to_do(tmp_path, monkeypatch, capsys) -> None:
    nowhere = tmp_path / "a file"
    nowhere.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(nowhere))
    assert main(["compile"]) == 1
    assert "Set NUMBA_CACHE_DIR to a folder" in capsys.readouterr().err
