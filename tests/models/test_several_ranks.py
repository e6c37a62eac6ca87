"""Adapters of several ranks, of one decomposition of each layer: the files that each rank alone would make."""

import numpy as np
import pytest

from lowrank_core.models import extract, resize
from lowrank_core.models.operations import factoring
from tests.models.models_on_disk import checkpoint_pair

RANKS = [2, 5, 1]
FILES = {"adapter": ("adapter_model.safetensors", "adapter_config.json"), "kohya.safetensors": ("",)}


def contents(path, files):
    return [(path / file if file else path).read_bytes() for file in files]


@pytest.mark.parametrize("out", FILES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extracting_several_ranks_writes_what_each_alone_does(tmp_path, rng, out, dtype):
    paths, _ = checkpoint_pair(tmp_path, rng, dtype=dtype)
    reports = extract(*paths, tmp_path / out, rank=RANKS)
    name, _, ending = out.partition(".")
    for report, rank in zip(reports, sorted(RANKS), strict=True):
        written = tmp_path / f"{name}-r{rank}{'.' * bool(ending)}{ending}"
        assert report.out == str(written)
        alone = extract(*paths, tmp_path / f"alone-{rank}{'.' * bool(ending)}{ending}", rank=rank)
        assert contents(written, FILES[out]) == contents(type(written)(alone.out), FILES[out])
        for layer, other in zip(report.layers, alone.layers, strict=True):
            # Products of another width may round the factors' last bits in float64 otherwise.
            for figure in ("rank", "error", "storage_error", "best_error"):
                assert getattr(layer, figure) == pytest.approx(getattr(other, figure), rel=1e-7)


def test_resizing_several_ranks_writes_what_each_alone_does(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    extract(*paths, tmp_path / "source", rank=5)
    reports = resize(tmp_path / "source", tmp_path / "small", rank=(1, 3), dtype="bfloat16", uniform=True)
    for report, rank in zip(reports, (1, 3), strict=True):
        alone = tmp_path / f"alone-{rank}"
        resize(tmp_path / "source", alone, rank=rank, dtype="bfloat16", uniform=True)
        assert report.out == str(tmp_path / f"small-r{rank}")
        assert contents(tmp_path / f"small-r{rank}", FILES["adapter"]) == contents(alone, FILES["adapter"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_layer_is_decomposed_once(tmp_path, rng, monkeypatch, dtype):
    paths, updates = checkpoint_pair(tmp_path, rng, dtype=dtype)
    decomposed = []

    def counted(update, *arguments, **options):
        decomposed.append(update)
        return decompose(update, *arguments, **options)

    decompose = factoring.best_factors_and_values
    monkeypatch.setattr(factoring, "best_factors_and_values", counted)
    extract(*paths, tmp_path / "out", rank=[1, 2, 3, 4])
    assert len(decomposed) == len(updates)


def test_nothing_is_written_where_one_output_exists_or_only_reports_are_wanted(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    before = set(tmp_path.iterdir())
    reports = extract(*paths, tmp_path / "out", rank=[1, 2], dry_run=True)
    assert [report.written for report in reports] == [False, False]
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "out-r2").mkdir()
    (tmp_path / "out-r2" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="out-r2"):
        extract(*paths, tmp_path / "out", rank=[1, 2])
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out-r2"}


def test_a_failure_while_writing_leaves_none_of_the_adapters(tmp_path, rng, monkeypatch):
    paths, _ = checkpoint_pair(tmp_path, rng)
    before = set(tmp_path.iterdir())
    original = factoring.LowRankUpdate.balanced
    calls = []

    def failing(update):
        calls.append(update.rank)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return original(update)

    monkeypatch.setattr(factoring.LowRankUpdate, "balanced", failing)
    with pytest.raises(
        OSError, match=r"No space left on device, for .*out-r\d': [\d,]+ bytes of it were written"
    ) as caught:
        extract(*paths, tmp_path / "out", rank=[1, 2])
    assert str(caught.value).count("No space left") == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("ranks", [[], [0, 2], [-1], [1.5]])
def test_several_ranks_are_whole_numbers_of_at_least_one(tmp_path, rng, ranks):
    paths, _ = checkpoint_pair(tmp_path, rng)
    with pytest.raises(ValueError, match="whole number"):
        extract(*paths, tmp_path / "out", rank=ranks)
    assert not list(tmp_path.glob("out*"))
