import json

import ml_dtypes
import numpy as np
import pytest

from lowrank_core.models.files.checkpoints import open_checkpoint
from lowrank_core.models.files.tensors import open_file
from lowrank_core.models.pairing.changes import find_tied
from lowrank_core.models.pairing.pairs import pair_checkpoints


def write_sharded(folder, shards, weight_map=None):
    from safetensors.numpy import save_file

    folder.mkdir()
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    shard_of = {key: name for name, tensors in shards.items() for key in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of if weight_map is None else weight_map}))
    return index


def open_pair(write_file, base, tuned):
    paths = write_file(base, "base.safetensors"), write_file(tuned, "tuned.safetensors")
    return pair_checkpoints(*map(open_checkpoint, paths))


def test_file_and_folder_hold_the_same(write_file):
    path = write_file({"a.weight": np.ones((2, 3))})
    assert open_checkpoint(path) == open_checkpoint(path.parent) == open_checkpoint(str(path))


def test_shards_are_read_as_one_checkpoint(tmp_path):
    first, second = np.full((2, 2), 1.0), np.full((2, 2), 2.0)
    index = write_sharded(tmp_path / "m", {"1.safetensors": {"a.weight": first}, "2.safetensors": {"b.weight": second}})
    checkpoint = open_checkpoint(index)
    assert checkpoint == open_checkpoint(index.parent)
    assert [checkpoint.tensors[key].read()[0, 0] for key in ("a.weight", "b.weight")] == [1.0, 2.0]


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..\\x", "C:x", "..", "."]
)
def test_a_shard_name_with_a_path_in_it_is_refused(tmp_path, shard):
    index = write_sharded(tmp_path / "m", {"x.safetensors": {"a": np.ones(1)}}, {"a": shard})
    with pytest.raises(ValueError, match="a shard is a plain file name beside its index"):
        open_checkpoint(index)


def test_a_missing_shard_is_named(tmp_path):
    index = write_sharded(tmp_path / "m", {}, {"a": "gone.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"'gone.safetensors', which is not beside it"):
        open_checkpoint(index)


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path):
    index = write_sharded(tmp_path / "m", {"x.safetensors": {"a": np.ones(1)}}, {"b": "x.safetensors"})
    with pytest.raises(ValueError, match=r"says that 'b' is in 'x.safetensors', but it is not"):
        open_checkpoint(index)


def test_tensors_of_a_shard_that_the_index_does_not_list_are_refused(tmp_path):
    tensors = {"a": np.ones(1), "b": np.ones(2)}
    index = write_sharded(tmp_path / "m", {"x.safetensors": tensors}, {"a": "x.safetensors"})
    with pytest.raises(ValueError, match=r"does not list 1 tensor of its shards, as 'b'"):
        open_checkpoint(index)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_an_index_without_a_map_is_refused(tmp_path, weight_map):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="has no weight_map"):
        open_checkpoint(tmp_path)


def test_a_folder_with_several_checkpoints_is_ambiguous(write_file):
    write_file({"a": np.ones(1)}, "one.safetensors")
    with pytest.raises(ValueError, match=r"several checkpoints \(one.safetensors, two.safetensors\)"):
        open_checkpoint(write_file({"a": np.ones(1)}, "two.safetensors").parent)


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("model.safetensors", "consolidated.safetensors"),
        ("model.safetensors", "pytorch_model.bin"),
        ("pytorch_model.bin", "consolidated.safetensors"),
    ],
)
def test_a_file_of_a_models_own_name_is_taken_before_any_other(write_file, name, beside):
    write_file({"b": np.ones(1)}, beside)
    path = write_file({"a": np.ones(1)}, name)
    assert open_checkpoint(path.parent) == open_checkpoint(path)


@pytest.mark.parametrize("beside", ["other.safetensors.index.json", "pytorch_model.bin"])
def test_an_index_of_a_models_own_name_is_taken_before_any_other(tmp_path, beside):
    index = write_sharded(tmp_path / "m", {"x.safetensors": {"a": np.ones(1)}})
    (tmp_path / "m" / beside).write_text("{}")
    assert open_checkpoint(tmp_path / "m") == open_checkpoint(index)


def test_a_folder_with_no_weights_is_refused(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"^no model.safetensors and no model.safetensors.index.json"):
        open_checkpoint(tmp_path)


def test_layers_are_the_matrices_that_both_hold(write_file, rng):
    weights = {"a.weight": rng.standard_normal((4, 3)), "conv.weight": rng.standard_normal((4, 3, 2, 2))}
    changed = {name: weight + 1 for name, weight in weights.items()}
    checkpoints = open_pair(
        write_file, weights | {"gone.weight": np.ones((2, 2))}, changed | {"norm.weight": np.ones(3)}
    )
    assert [(layer.name, layer.shape) for layer in checkpoints.layers] == [("a", (4, 3)), ("conv", (4, 12))]
    for layer in checkpoints.layers:
        expected = changed[f"{layer.name}.weight"] - weights[f"{layer.name}.weight"]
        assert np.array_equal(layer.update(), expected.reshape(layer.shape))
    assert checkpoints.incomplete == {"gone": "only in the base checkpoint: 2 × 2, float64, norm 2"}
    [(name, change)] = checkpoints.other_changes()
    assert (name, change.entries, change.is_vector) == ("norm.weight", 3, True)
    assert change.description.startswith("only in the tuned checkpoint: 3, float64, norm 1.732")


def test_a_tensor_that_is_not_a_matrix_is_listed_only_if_it_changed(write_file):
    base = {
        "w.weight": np.ones((2, 2), np.float32),
        "norm.weight": np.ones(4, np.float32),
        "kept.bias": np.ones(4, np.float32),
        "scale": np.array(2.0, np.float32),
        "positions": np.arange(6).reshape(1, 6),
        "mask": np.ones((1, 1, 4, 4), bool),
    }
    tuned = base | {
        "norm.weight": np.full(4, 1.5, np.float32),
        "scale": np.array(-1.0, np.float32),
        "mask": np.zeros((1, 1, 4, 4), bool),
    }
    checkpoints = open_pair(write_file, base, tuned)
    assert [layer.name for layer in checkpoints.layers] == ["w"]
    assert not checkpoints.unpaired
    others = {name: change.description for name, change in checkpoints.other_changes()}
    assert others["norm.weight"] == "changed by norm 1 (its own 2): 4, float32"
    assert others["scale"] == "changed by norm 3 (its own 2): scalar, float32"
    assert others["mask"].startswith("changed in 16 of 16 entries")
    assert sorted(others) == ["mask", "norm.weight", "scale"]
    assert [name for name, change in checkpoints.other_changes() if not change.is_vector] == ["mask"]


def test_the_difference_of_8_bit_weights_is_theirs(write_file, rng):
    base, tuned = (rng.standard_normal((4, 3)).astype(ml_dtypes.float8_e4m3fn) for _ in range(2))
    [layer] = open_pair(write_file, {"q.weight": base}, {"q.weight": tuned}).layers
    assert layer.dtype == "float8_e4m3fn"
    assert np.array_equal(layer.update(), tuned.astype(np.float32) - base.astype(np.float32))


def test_a_tensor_of_a_type_that_numpy_lacks_is_listed_as_not_compared(write_file):
    path = write_file({"q": np.ones((2, 2), ml_dtypes.float8_e4m3fn), "w": np.ones((2, 2))})
    path.write_bytes(path.read_bytes().replace(b'"F8_E4M3"', b'"F8_E8M0"'))
    checkpoint = open_checkpoint(path)
    [(name, change)] = pair_checkpoints(checkpoint, checkpoint).other_changes()
    assert (name, change.is_vector) == ("q", False)
    assert change.description.startswith("not compared: 2 × 2, F8_E8M0")


def test_weights_of_different_shapes_are_reported_by_name_beside_the_others(write_file):
    base = {"embed.weight": np.ones((4, 2)), "a.weight": np.ones((2, 2))}
    checkpoints = open_pair(write_file, base, base | {"embed.weight": np.ones((5, 2))})
    assert list(checkpoints.unpaired) == ["embed"]
    assert "4 × 2 in the base, 5 × 2 in the tuned checkpoint" in checkpoints.incomplete["embed"]
    assert [layer.name for layer in checkpoints.layers] == ["a"]
    assert not dict(checkpoints.other_changes())


def test_nothing_in_common_is_refused_with_an_example_of_each(write_file):
    with pytest.raises(
        ValueError, match=r"no 2-D weight in common: the first has 1, as 'a.weight' \(float64\), the second"
    ):
        open_pair(write_file, {"a.weight": np.ones((2, 2))}, {"b.weight": np.ones((2, 2))})


def test_a_weight_that_one_stores_twice_is_one_layer(write_file, rng):
    embed = rng.standard_normal((6, 4)).astype(np.float32)
    checkpoints = open_pair(
        write_file, {"embed.weight": embed}, {"embed.weight": embed + 1, "lm_head.weight": embed + 1}
    )
    assert [layer.name for layer in checkpoints.layers] == ["embed"]
    [(name, change)] = checkpoints.other_changes()
    assert (name, change.is_vector) == ("lm_head.weight", True)
    assert "equal to 'embed.weight' there, to which the other ties it" in change.description


def test_a_second_matrix_that_only_one_has_is_no_copy_unless_it_is_equal(write_file, rng):
    embed = rng.standard_normal((6, 4)).astype(np.float32)
    checkpoints = open_pair(write_file, {"embed.weight": embed}, {"embed.weight": embed, "lm_head.weight": embed + 1})
    assert list(checkpoints.unpaired) == ["lm_head"]


def test_dtypes_that_differ_are_both_named(write_file):
    checkpoints = open_pair(write_file, {"a": np.ones((2, 2), ml_dtypes.bfloat16)}, {"a": np.ones((2, 2), np.float32)})
    assert checkpoints.layers[0].dtype == "bfloat16 → float32"
    assert checkpoints.layers[0].update().dtype == np.float32


def test_a_head_is_tied_to_an_embedding_and_other_equal_weights_are_not(write_file):
    equal = np.ones((3, 2), np.float32)
    names = ["model.embed_tokens.weight", "lm_head.weight", "a.q_proj.weight", "b.q_proj.weight"]
    tensors, _ = open_file(write_file({name: (2.0 if "proj" in name else 1.0) * equal for name in names}))
    assert find_tied(names, tensors) == {names[0]: names[1], names[1]: names[0]}
