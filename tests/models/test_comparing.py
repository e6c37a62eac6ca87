"""Comparisons of adapters on disk: names, formats, what only one has, and the totals."""

import json

import numpy as np
import pytest

from lowrank_core import compare as compare_updates
from lowrank_core.models import compare, to_json
from lowrank_core.models.operations.compared import to_rows
from lowrank_core.models.overlaps import whole_overlap
from tests.models.models_on_disk import checkpoint_pair


def factors(rng, name, shape=(6, 5), rank=2):
    return {
        f"{name}.lora_A.weight": rng.standard_normal((rank, shape[1])).astype(np.float32),
        f"{name}.lora_B.weight": rng.standard_normal((shape[0], rank)).astype(np.float32),
    }


def test_layers_of_one_adapter_alone_are_named(write_peft, rng):
    shared = factors(rng, "layers.0.q_proj")
    one = write_peft(shared | factors(rng, "layers.1.q_proj"), "one")
    two = write_peft(shared | factors(rng, "layers.2.q_proj"), "two")
    report = compare([one, two])
    (pair,) = report.pairs
    assert [layer.name for layer in pair.layers] == ["layers.0.q_proj"]
    assert (pair.only_in_first, pair.only_in_second) == (("layers.1.q_proj",), ("layers.2.q_proj",))
    assert not report.complete
    assert report.cosines[0][1] == pytest.approx(1.0, abs=1e-12)
    assert pair.totals.reinforcing == ("layers.0.q_proj",)
    assert compare([one, one]).complete


def test_orthogonal_updates_neither_reinforce_nor_cancel(write_peft, rng):
    tensors = factors(rng, "layers.0.q_proj")
    B = tensors["layers.0.q_proj.lora_B.weight"]
    paths = []
    for place in (0, 1):
        half = np.zeros_like(B)
        half[place::2] = B[place::2]
        paths.append(write_peft(tensors | {"layers.0.q_proj.lora_B.weight": half}, str(place)))
    (pair,) = compare(paths).pairs
    assert pair.layers[0].growth == pytest.approx(1.0, abs=1e-12)
    assert (pair.totals.reinforcing, pair.totals.cancelling) == ((), ())


def test_adapters_without_a_layer_in_common_are_refused(write_peft, rng):
    one, two = (write_peft(factors(rng, f"layers.{i}.q_proj"), str(i)) for i in range(2))
    with pytest.raises(ValueError, match=r"no layer in common: the first has 'layers.0.q_proj'"):
        compare([one, two])
    with pytest.raises(ValueError, match="at least two"):
        compare([one])
    with pytest.raises(ValueError, match="rank is a whole number"):
        compare([one, one], rank=-1)


def test_a_layer_of_another_shape_is_a_failure(write_peft, rng):
    both = factors(rng, "a.q_proj")
    one = write_peft(both | factors(rng, "b.q_proj", (6, 5)), "one")
    two = write_peft(both | factors(rng, "b.q_proj", (7, 5)), "two")
    report = compare([one, two])
    assert "its shapes disagree" in report.pairs[0].failures["b.q_proj"]
    assert [layer.name for layer in report.pairs[0].layers] == ["a.q_proj"]
    assert not report.complete
    assert [row["failure"] is None for row in to_rows(report)] == [True, False]


def test_a_kohya_file_and_a_peft_adapter_have_the_same_layers(write_peft, write_file, rng):
    tensors = factors(rng, "layers.0.q_proj")
    A, B = tensors["layers.0.q_proj.lora_A.weight"], tensors["layers.0.q_proj.lora_B.weight"]
    kohya = write_file(
        {
            "lora_unet_layers_0_q_proj.lora_down.weight": A,
            "lora_unet_layers_0_q_proj.lora_up.weight": -B,
            "lora_unet_layers_0_q_proj.alpha": np.float32(8.0),
        },
        "kohya.safetensors",
    )
    pair = compare([write_peft(tensors), kohya]).pairs[0]
    assert [layer.name for layer in pair.layers] == ["layers.0.q_proj"]
    assert pair.totals.cosine == pytest.approx(-1.0, abs=1e-12)
    assert pair.totals.sum_norm == 0.0
    assert pair.totals.cancelling == ("layers.0.q_proj",)


def test_a_zero_adapter_overlaps_with_nothing(write_peft, rng):
    tensors = factors(rng, "q_proj")
    zero = {name: tensor * ("lora_A" in name) for name, tensor in tensors.items()}
    layer = compare([write_peft(tensors, "one"), write_peft(zero, "zero")]).pairs[0].layers[0]
    assert (layer.cosine, layer.second_norm, layer.growth) == (0.0, 0.0, pytest.approx(1.0))
    assert not layer.rows.overlap.any()
    assert np.isnan(layer.rows.angles).all()


def test_checkpoints_of_one_base_are_compared_as_their_differences(tmp_path, rng):
    (base, tuned), updates = checkpoint_pair(tmp_path, rng)
    (tmp_path / "other").mkdir()
    (_, other), others = checkpoint_pair(tmp_path / "other", np.random.default_rng(0))
    report = compare([tuned, other], base, rank=3)
    for layer in report.pairs[0].layers:
        assert layer.first_norm == pytest.approx(np.linalg.norm(updates[layer.name]), rel=1e-6)
        assert layer.cosine == pytest.approx(1.0, abs=1e-12)
        assert layer.columns.overlap.shape == (3, 3)
    assert sorted(others) == [layer.name for layer in report.pairs[0].layers]


def test_all_of_it_is_json(write_peft, rng):
    adapters = [write_peft(factors(rng, "q_proj"), name) for name in ("one", "two", "three")]
    report = compare(adapters)
    plain = json.loads(json.dumps(to_json(report)))
    assert len(plain["pairs"]) == 3
    layer = plain["pairs"][0]["layers"][0]
    assert np.array(layer["columns"]["overlap"]).shape == (2, 2)
    assert layer["columns"]["overlap_by_chance"] == [[1 / 6, 1 / 3], [1 / 3, 1 / 3]]
    assert np.allclose(plain["cosines"], np.transpose(plain["cosines"]))


def test_the_overlap_of_whole_spaces_is_that_of_all_vectors_and_its_chance_too(rng):
    space = compare_updates(rng.standard_normal((9, 7)), rng.standard_normal((9, 7))).columns
    assert whole_overlap(space) == (space.overlap[6, 6], 7 / 9)
