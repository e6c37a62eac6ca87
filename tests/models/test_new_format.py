"""A format is one value in one place: a third one, added through FORMATS, is read and written by every operation."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core.cli.app import main
from lowrank_core.models import Budget, census, extract, formats, inspect, merge, open_adapter, plan, resize
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    Placement,
    both_factors,
    build_of,
    by_module,
)
from lowrank_core.models.formats.format import Format, StoredScale
from tests.models.models_on_disk import assert_figures, checkpoint_pair, written_updates

RIGHT, LEFT = ".right", ".left"


def recognises(file):
    return any(key.endswith((RIGHT, LEFT)) for key in file.tensors)


def read(file):
    modules, rest = by_module(file.tensors, (RIGHT, LEFT))
    return Adapter(
        path=file.path,
        format="example",
        layers=tuple(layer(*item) for item in sorted(modules.items())),
        unread=rest,
        metadata=file.metadata,
    )


def layer(module, tensors):
    A, B = both_factors(module, tensors, (RIGHT, LEFT))
    build, fixed = build_of(module, A, B)
    rank = A.shape[0]
    return AdapterLayer(
        placement=place(module, (B.shape[0], *A.shape[1:])),
        rank=rank,
        alpha=float(rank),
        rule="standard",
        scaling=1.0,
        scaling_source="no alpha in this format: scale 1",
        tensors=(B, A),
        build=build,
        fixed=fixed,
    )


def place(name, dims, prefix=None, embedding=False):
    return Placement("example", name, name, (f"{name}{RIGHT}", f"{name}{LEFT}"), dims)


def scale(alpha, rule, rank, dtype):
    return StoredScale(rank, float(rank), 1.0)


EXAMPLE = Format(
    name="example",
    title="the example's format",
    factors="the example's left and right",
    recognises=recognises,
    read=read,
    place=place,
    rules=("standard",),
    scale=scale,
)
SHAPES = {"unet.to_q": ((20, 4), (4, 12)), "unet.conv": ((9, 3, 1, 1), (3, 4, 3, 2))}


@pytest.fixture(autouse=True)
def with_the_format(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, EXAMPLE))


@pytest.fixture
def factors(rng):
    """Up and down of each module."""
    return {
        name: tuple(rng.standard_normal(shape).astype(np.float32) for shape in pair) for name, pair in SHAPES.items()
    }


@pytest.fixture
def adapter(tmp_path, factors):
    tensors = {f"{name}{part}": factors[name][i] for name in factors for i, part in enumerate((LEFT, RIGHT))}
    save_file(tensors, tmp_path / "old.safetensors", metadata={"made": "by hand"})
    return tmp_path / "old.safetensors"


@pytest.fixture
def updates(factors):
    return {name: product(*pair) for name, pair in factors.items()}


def product(up, down):
    return up.astype(float).reshape(len(up), -1) @ down.astype(float).reshape(len(down), -1)


def stored_updates(path):
    tensors = load_file(path)
    modules = {key.removesuffix(LEFT) for key in tensors if key.endswith(LEFT)}
    assert tensors.keys() == {f"{module}{part}" for module in modules for part in (LEFT, RIGHT)}
    return {module: product(tensors[f"{module}{LEFT}"], tensors[f"{module}{RIGHT}"]) for module in modules}


def test_inspect_reads_it(adapter, updates):
    report = inspect(adapter)
    assert (report.format, report.failures, report.not_low_rank) == ("example", {}, {})
    for of_layer in report.layers:
        assert of_layer.norm == pytest.approx(np.linalg.norm(updates[of_layer.name]), rel=1e-6)
        assert of_layer.scaling_source == "no alpha in this format: scale 1"


@pytest.mark.parametrize("options", [{"rank": 2}, {}, {"uniform": True}, {"rank": 2, "dtype": "bfloat16"}])
def test_resize_writes_it(adapter, updates, tmp_path, options):
    report = resize(adapter, tmp_path / "new.safetensors", **options)
    assert (report.format, report.failures, report.skipped, report.reader_rule) == ("example", {}, {}, "standard")
    written = stored_updates(tmp_path / "new.safetensors")
    assert written.keys() == updates.keys()
    for of_layer in report.layers:
        assert_figures(of_layer, updates[of_layer.name], written[of_layer.name])
        assert of_layer.scaling == 1.0
    assert {of_layer.stored_rank for of_layer in report.layers} == (
        {4} if "uniform" in options else {2} if options else {3, 4}
    )
    assert open_adapter(tmp_path / "new.safetensors").metadata == {"made": "by hand"}


def test_resize_turns_it_into_pefts_and_back_under_its_names(adapter, updates, tmp_path):
    resize(adapter, tmp_path / "peft", rule="rslora", alpha=3.0)
    assert written_updates(tmp_path / "peft").keys() == updates.keys()
    for name, update in written_updates(tmp_path / "peft").items():
        assert np.allclose(update, updates[name], rtol=0, atol=1e-5)
    # The name of a single file asks for the source's own format, where that is one of single files.
    assert resize(tmp_path / "peft", tmp_path / "kohya.safetensors").format == "kohya"


def test_merge_adds_it_to_others(adapter, updates, tmp_path):
    resize(adapter, tmp_path / "peft")
    for out, read_back in (("sum.safetensors", stored_updates), ("sum", written_updates)):
        report = merge([adapter, tmp_path / "peft"], tmp_path / out, weights=[1.0, 0.5])
        assert report.failures == {}
        for name, update in read_back(tmp_path / out).items():
            assert np.allclose(update, 1.5 * updates[name], rtol=0, atol=1e-5)
    # kohya's names are found among the base model's own, which it has.
    resize(tmp_path / "peft", tmp_path / "kohya.safetensors")
    report = merge([adapter, tmp_path / "kohya.safetensors"], tmp_path / "both.safetensors")
    assert report.format == "example"
    assert {of_layer.name for of_layer in report.layers} == set(updates)


def test_plan_and_census_read_it(adapter, tmp_path):
    planned = plan(adapter, budget=Budget(parameters=100))
    assert {of_layer.name for of_layer in planned.layers} == set(SHAPES)
    (row,) = census(tmp_path, ranks=[1])
    assert (row.format, row.layers, row.failure) == ("example", 2, None)


def test_the_command_line_knows_it(adapter, tmp_path, capsys):
    assert main(["inspect", str(adapter)]) == 0
    assert "(example adapter)" in " ".join(capsys.readouterr().out.split())
    assert main(["resize", str(adapter), str(tmp_path / "new.safetensors"), "--rank", "1"]) == 0
    assert "(example)" in " ".join(capsys.readouterr().out.split())


def test_the_message_about_an_unknown_file_names_every_format(write_file):
    with pytest.raises(ValueError, match=r"kohya's lora_down and lora_up.*PEFT's lora_A.*the example's left and right"):
        open_adapter(write_file({"a.weight": np.ones((2, 2))}))


def test_a_format_that_takes_no_others_layers_is_written_for_its_own(adapter, updates, tmp_path, monkeypatch):
    resize(adapter, tmp_path / "peft")
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS[:-1], replace(EXAMPLE, place=None)))
    resize(adapter, tmp_path / "new.safetensors")
    assert stored_updates(tmp_path / "new.safetensors").keys() == updates.keys()
    (reason, *_) = merge(
        [adapter, tmp_path / "peft"], tmp_path / "sum.safetensors", include=["*"]
    ).failures.values() or [""]
    assert reason == ""
    assert resize(tmp_path / "peft", tmp_path / "other.safetensors").format == "kohya"


def test_what_is_extracted_is_of_the_first_format_that_is_written(tmp_path, rng):
    paths, _ = checkpoint_pair(tmp_path, rng)
    assert extract(*paths, tmp_path / "new.safetensors", rank=1).format == "kohya"
    assert extract(*paths, tmp_path / "new", rank=1).format == "peft"
