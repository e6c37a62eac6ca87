"""What a file says of its layers, and that its reader finds it there."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.files.streams import header_size
from lowrank_core.models.files.tensors import open_file
from lowrank_core.models.formats import Placement, open_adapter
from lowrank_core.models.formats.format import Headers, Kept, StoredScale
from lowrank_core.models.formats.kohya import KOHYA
from lowrank_core.models.formats.peft import PEFT
from lowrank_core.models.formats.peft_config import lora_config
from lowrank_core.models.operations import storing
from lowrank_core.models.operations.destinations import OutputFiles
from lowrank_core.models.operations.factoring import FactorEncoding, finest_dtype
from lowrank_core.models.operations.resizing import resize
from lowrank_core.models.operations.storing import bytes_beside_factors, complete, stored_scales


def scales_of(encoding, ranks, placements=None):
    """What a file says of layers of these ranks, each with the scale that it was factored for, by name."""
    placements = placements or {name: PEFT.place(name, (9, 8), None, False) for name in ranks}
    kept = {placements[name]: (rank, encoding.stored_scale(rank).scaling) for name, rank in ranks.items()}
    return {placement.name: tuple(scale) for placement, scale in stored_scales(kept, encoding).items()}


def test_each_layer_has_its_own_rank():
    assert scales_of(FactorEncoding(alpha=6.0), {"a": 1, "b": 3}) == {"a": (1, 6.0, 6.0), "b": (3, 6.0, 2.0)}
    assert scales_of(FactorEncoding(alpha=6.0, rule="rslora"), {"a": 4}) == {"a": (4, 6.0, 3.0)}


def test_uniform_takes_the_largest_rank():
    assert scales_of(FactorEncoding(uniform=True), {"a": 1, "b": 3}) == {"a": (3, 3.0, 1.0), "b": (3, 3.0, 1.0)}


def test_a_uniform_rank_that_a_stored_alpha_can_equal():
    # bfloat16 has 256 and 258, and nothing between them.
    assert scales_of(FactorEncoding("bfloat16", uniform=True, scale=KOHYA.scale), {"a": 257}) == {
        "a": (258, 258.0, 1.0)
    }
    assert scales_of(FactorEncoding("bfloat16", uniform=True, scale=PEFT.scale), {"a": 257}) == {"a": (257, 257.0, 1.0)}


@pytest.mark.parametrize("rule", ["standard", "rslora"])
def test_layers_with_one_entry_in_a_configuration(rule):
    placements = {name: Placement("peft", name, "mha", (f"{name}.A", f"{name}.B"), (9, 8)) for name in ("in", "out")}
    # Such layers are factored for the scale 1.
    kept = {placements["in"]: (1, 1.0), placements["out"]: (4, 1.0)}
    alpha = 4.0 if rule == "standard" else 2.0
    scales = stored_scales(kept, FactorEncoding(rule=rule))
    assert {placement.name: tuple(scale) for placement, scale in scales.items()} == {
        "in": (4, alpha, 1.0),
        "out": (4, alpha, 1.0),
    }


def test_kohyas_metadata():
    one, other = (KOHYA.place(name, (9, 8), None, False) for name in ("one", "other"))
    stored = {one: StoredScale(4, 8.0, 2.0), other: StoredScale(4, 8.0, 2.0)}
    assert KOHYA.headers(stored, "standard", Kept()).metadata["ss_network_dim"] == "4"
    stored[other] = StoredScale(2, 8.0, 4.0)
    assert KOHYA.headers(stored, "standard", Kept()).metadata == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "8",
    }


def test_a_writer_warns_of_what_a_reader_warns_of(write_peft):
    tensors = {}
    for name, rank in (("a", 2), ("b", 3)):
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = np.ones((rank, 4)), np.ones((5, rank))
    config = lora_config({"a": 2, "b": 3}, {"a": 4.0, "b": 7.0}, use_rslora=True)
    read = open_adapter(write_peft(tensors, **config))
    stored = {layer.placement: StoredScale(layer.rank, layer.alpha, layer.scaling) for layer in read.layers}
    headers = PEFT.headers(stored, "rslora", Kept())
    assert headers.config == config
    assert headers.warnings == read.warnings
    assert len(read.warnings) == 3


def test_a_file_that_reads_otherwise_is_refused(write_peft):
    tensors = {"a.lora_A.weight": np.eye(2, 4), "a.lora_B.weight": np.eye(5, 2)}
    folder = write_peft(tensors, r=2, lora_alpha=4)
    (layer,) = open_adapter(folder).layers
    missing = PEFT.place("b", (5, 4), None, False)
    complete(OutputFiles(folder, PEFT), PEFT, {layer.placement: StoredScale(2, 4.0, 2.0)}, Headers(), Headers(), {})
    for placement, scale, found in (
        (layer.placement, StoredScale(2, 4.2, 2.1), "'a' would be read with rank 2 and scale 2.0"),
        (layer.placement, StoredScale(1, 2.0, 2.0), "'a' would be read with rank 2 and scale 2.0"),
        (missing, StoredScale(2, 4.0, 2.0), "'b' would be read with rank 0 and scale 0.0"),
    ):
        with pytest.raises(ValueError, match=rf"{found}, but was made for rank {scale.rank} and scale {scale.scaling}"):
            complete(OutputFiles(folder, PEFT), PEFT, {placement: scale}, Headers(), Headers(), {})


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_a_padding_that_fails_leaves_no_file(write_peft, tmp_path, monkeypatch, out):
    tensors = {}
    for name, rank in (("a", 2), ("b", 3)):
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = np.eye(rank, 4), np.eye(5, rank)
    adapter = write_peft(tensors)
    before = sorted(tmp_path.rglob("*"))

    def fails(*_):
        raise OSError("no space left on the device")

    monkeypatch.setattr(storing, "_padded", fails)
    with pytest.raises(OSError, match=r"^no space left"):
        resize(adapter, tmp_path / out, uniform=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_finest_dtype_of_all():
    from lowrank_core.models.files.tensors import StoredTensor

    dtypes = ("float16", "float32", "int8", "float8_e5m2")
    stored = {dtype: StoredTensor(Path("file"), "key", (2, 2), dtype) for dtype in dtypes}
    assert finest_dtype(stored.values()) == "float32"
    assert finest_dtype([stored["float16"]]) == "float16"
    assert finest_dtype([stored["int8"]]) == "float32"
    assert finest_dtype([stored["float8_e5m2"]]) == "bfloat16"
    assert finest_dtype([StoredTensor(Path("file"), "key", (2, 2), "Q8_0", "float32")]) == "float32"


def test_an_adapter_in_8_bits_is_written_in_bfloat16(write_peft, rng, tmp_path):
    factors = {"A": rng.standard_normal((2, 6)), "B": rng.standard_normal((5, 2))}
    stored = {name: factor.astype(ml_dtypes.float8_e4m3fn) for name, factor in factors.items()}
    path = write_peft({"q.lora_A.weight": stored["A"], "q.lora_B.weight": stored["B"]}, r=2, lora_alpha=4)
    report = resize(path, tmp_path / "out", rank=2)
    assert (report.dtype, report.layers[0].dtype) == ("bfloat16", "float8_e4m3fn")
    update = 2 * stored["B"].astype(np.float64) @ stored["A"].astype(np.float64)
    assert report.layers[0].norm == pytest.approx(np.linalg.norm(update), rel=1e-12)
    [layer] = open_adapter(tmp_path / "out").layers
    assert np.linalg.norm(layer.update().to_dense() - update) < 0.01 * np.linalg.norm(update)


def test_what_a_file_has_beside_factors_includes_other_tensors_in_float64(write_file):
    tensors, _ = open_file(write_file({"norm": np.ones(10, np.float32), "bias": np.ones((2, 3), np.float16)}))
    without = bytes_beside_factors(["a", "b"], {}, ())
    assert bytes_beside_factors(["a", "b"], {}, tensors.values()) == without + 8 * 16
    assert bytes_beside_factors(["a", "b"], {}, ()) == header_size(["a", "b"], {}) + 16
