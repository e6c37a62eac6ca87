"""Names of two checkpoints: what is aligned is one weight, and what names leave open is not guessed."""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from lowrank_core.models import extract, inspect, open_checkpoint, pair_checkpoints
from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.pairing.alignment import AlignedNames, align_names
from lowrank_core.rounding_noise import rounding_noise, ulps
from tests.models.models_on_disk import written_updates

PROJECTIONS = {"self_attn.q_proj": (6, 4), "self_attn.k_proj": (2, 4), "mlp.up_proj": (8, 4), "mlp.down_proj": (4, 8)}


def tower(prefix, blocks):
    """Names and shapes of a transformer's weights."""
    return {
        f"{prefix}layers.{block}.{name}.weight": shape for block in range(blocks) for name, shape in PROJECTIONS.items()
    }


def stored(shapes):
    return {key: StoredTensor(Path("x"), key, shape, "float32") for key, shape in shapes.items()}


def aligned(base, tuned, *, given_names=None, alike=False):
    """The aligned names of two models given by their names and shapes; values are `alike`, or never are."""
    alignment = align_names(stored(base), stored(tuned), given_names or {}, lambda *_: alike)
    return {match.base: match.tuned for match in alignment.matches}


prefixes = st.lists(st.sampled_from(["model", "language_model", "backbone", "text"]), max_size=3, unique=True).map(
    lambda parts: "".join(f"{part}." for part in parts)
)


@given(prefixes, st.integers(1, 12), st.randoms())
def test_a_beginning_that_is_inserted_is_found_whatever_the_order(prefix, blocks, random):
    base = tower("model.", blocks) | {"lm_head.weight": (9, 4)}
    keys = list(base)
    random.shuffle(keys)
    assert aligned(base, {prefix + key: base[key] for key in keys}) == {key: prefix + key for key in base}


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_of_two_towers_none_is_taken_for_the_other(text, vision, alike):
    """Soundness: each weight of a text model is aligned with that of the text tower of its block, or with none."""
    base = tower("model.", text)
    tuned = tower("model.language_model.", text) | tower("model.vision_tower.", vision)
    for old, new in aligned(base, tuned, alike=alike).items():
        assert new == old.replace("model.", "model.language_model.", 1)


def test_blocks_that_one_tower_alone_has_settle_the_others():
    base = tower("model.", 3)
    tuned = tower("model.language_model.", 3) | tower("model.vision_tower.", 2)
    assert aligned(base, tuned) == {key: key.replace("model.", "model.language_model.", 1) for key in base}


def test_what_is_ambiguous_is_named_and_settled_by_what_is_given():
    base, tuned = tower("model.", 2), tower("a.", 2) | tower("b.", 2)
    alignment = align_names(stored(base), stored(tuned), {}, lambda *_: True)
    assert alignment.matches == []
    assert "'a.layers.0.mlp.up_proj.weight' or 'b." in alignment.ambiguous["model.layers.0.mlp.up_proj.weight"]
    for given_names in ({"model": "b"}, {"model.": "b."}):
        assert aligned(base, tuned, given_names=given_names) == {key: key.replace("model", "b") for key in base}


@pytest.mark.parametrize(("old", "new"), [("modle", "a"), ("model", "c"), ("model.lay", "a.lay")])
def test_a_match_that_aligns_nothing_is_refused(old, new):
    with pytest.raises(ValueError, match=f"{old}={new} aligns nothing"):
        aligned(tower("model.", 1), tower("a.", 1), given_names={old: new})


def test_the_same_name_comes_first():
    shapes = {"q.weight": (4, 4), "x.q.weight": (4, 4)}
    assert aligned(shapes, shapes) == {key: key for key in shapes}


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ("layers.0.q_proj.weight", "layers.1.q_proj.weight"),
        ("blocks.0.layers.1.q.weight", "blocks.1.layers.0.q.weight"),
        ("q_proj.weight", "k_proj.weight"),
        ("encoder.weight", "decoder.weight"),
    ],
)
def test_other_blocks_and_other_modules_are_not_aligned(base, tuned):
    assert aligned({base: (4, 4)}, {tuned: (4, 4)}, alike=True) == {}


def test_beginnings_that_replace_each_other_need_values_that_are_alike():
    base, tuned = {"text.proj.weight": (4, 4)}, {"vision.proj.weight": (4, 4)}
    assert aligned(base, tuned, alike=False) == {}
    assert aligned(base, tuned, alike=True) == {"text.proj.weight": "vision.proj.weight"}


def test_shapes_have_to_agree():
    assert aligned({"q.weight": (4, 4)}, {"m.q.weight": (5, 4)}) == {}


def test_components_of_wrappers_may_be_anywhere():
    base = {"layers.0.q.weight": (4, 4), "layers.0.k.weight": (4, 4)}
    tuned = {
        "_fsdp_wrapped_module.layers.0._orig_mod.q.weight": (4, 4),
        "_fsdp_wrapped_module.layers.0._orig_mod.k.base_layer.weight": (4, 4),
    }
    assert aligned(base, tuned) == dict(zip(base, tuned, strict=True))


@pytest.fixture
def write_pair(write_file, rng):
    """Write two checkpoints given by what becomes of a model's tensors in each; return them, and the updates."""

    def write(shapes, for_base=dict, for_tuned=dict):
        base = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        tuned = {
            key: (value + 0.1 * rng.standard_normal(value.shape)).astype(np.float32) for key, value in base.items()
        }
        paths = write_file(for_base(base), "base.safetensors"), write_file(for_tuned(tuned), "tuned.safetensors")
        return paths, {key: tuned[key].astype(np.float64) - base[key].astype(np.float64) for key in base}

    return write


def fused(order, name):
    def fuse(tensors):
        kept = {key: value for key, value in tensors.items() if not key.endswith(tuple(order))}
        owners = {key.removesuffix(order[0]) for key in tensors if key.endswith(order[0])}
        return kept | {owner + name: np.concatenate([tensors[owner + part] for part in order]) for owner in owners}

    return fuse


QKV = {
    f"h.{block}.attn.{part}_proj.weight": (rows, 5)
    for block in range(2)
    for part, rows in zip("qkv", (6, 2, 2), strict=True)
}
PARTS = ["q_proj.weight", "k_proj.weight", "v_proj.weight"]


FUSED = {
    **dict.fromkeys(["qkv_proj.weight", "qkv.weight", "in_proj_weight", "Wqkv.weight"], PARTS),
    "to_qk.weight": PARTS[:2],
    "kv_proj.weight": PARTS[1:],
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("names", ["base", "tuned"])
@pytest.mark.parametrize("fuses_base", [True, False])
def test_fused_projections_are_cut_or_joined_as_the_names_ask(write_pair, name, names, fuses_base):
    fuse = fused(FUSED[name], name)
    paths, updates = write_pair(QKV, *((fuse, dict) if fuses_base else (dict, fuse)))
    pair = pair_checkpoints(*map(open_checkpoint, paths), names=names)
    expected = fuse(updates) if fuses_base == (names == "base") else updates
    assert {layer.key: layer.shape for layer in pair.layers} == {key: each.shape for key, each in expected.items()}
    for layer in pair.layers:
        np.testing.assert_allclose(layer.update(), expected[layer.key], rtol=2**-24)
    assert pair.unpaired == {}


@pytest.mark.parametrize("dtypes", [[np.float32] * 3, [bfloat16] * 3, [bfloat16, np.float16, np.float32]])
def test_the_noise_of_joined_parts_is_that_of_each_in_its_own_dtype(write_pair, dtypes):
    stored = dict(zip(PARTS, dtypes, strict=True))

    def rounded(tensors):
        return {key: value.astype(stored[key.partition("attn.")[2]]) for key, value in tensors.items()}

    paths, _ = write_pair(QKV, fused(PARTS, "qkv.weight"), rounded)
    pair = pair_checkpoints(*map(open_checkpoint, paths), names="base")
    assert len(pair.layers) == 2
    parts = open_checkpoint(paths[1]).tensors
    for layer in pair.layers:
        tuned = [parts[layer.key.removesuffix("qkv.weight") + part].read() for part in PARTS]
        whole, base = np.concatenate([part.astype(np.float32) for part in tuned]), layer.base.read()
        update, noise = layer.update_and_noise()
        assert np.array_equal(update, whole - base)
        expected = rounding_noise(base, whole, tuned_step=np.concatenate([ulps(part) for part in tuned]))
        assert layer.tuned.array_dtype == (np.dtype(dtypes[0]).name if len(set(dtypes)) == 1 else "float32")
        assert np.array_equal(layer.tuned.read(), whole)
        for level in ("one_side", "two_sides"):
            figures = [astuple(getattr(each, level)) for each in (noise, expected)]
            assert np.allclose(*figures, rtol=1e-6)


def test_rows_in_another_order_are_not_taken_for_the_parts(write_pair):
    """Interleaved by heads, as some models are: the names and shapes fit, and the values do not."""
    paths, _ = write_pair(QKV, dict, fused([PARTS[2], PARTS[0], PARTS[1]], "qkv_proj.weight"))
    with pytest.raises(ValueError, match="no 2-D weight in common"):
        pair_checkpoints(*map(open_checkpoint, paths))


EXPERTS = {
    f"l.{block}.mlp.experts.{name}": (3, *shape)
    for block in range(2)
    for name, shape in {"gate_up_proj": (8, 5), "down_proj": (5, 4)}.items()
}
LEAVES = {
    "transformers": ("mlp", "gate_proj", "up_proj", "down_proj"),
    "Mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
}


def separated(owner, gate, up, down):
    def separate(tensors):
        apart = {}
        for key, stack in tensors.items():
            block = key.partition(".mlp.")[0]
            for expert, matrix in enumerate(stack):
                lead = f"{block}.{owner}.experts.{expert}"
                if key.endswith("gate_up_proj"):
                    apart |= {f"{lead}.{gate}.weight": matrix[:4], f"{lead}.{up}.weight": matrix[4:]}
                else:
                    apart[f"{lead}.{down}.weight"] = matrix
        return {key: np.ascontiguousarray(matrix) for key, matrix in apart.items()}

    return separate


@pytest.mark.parametrize("style", LEAVES)
@pytest.mark.parametrize("separates_base", [True, False])
def test_experts_apart_are_those_of_the_stack(write_pair, style, separates_base):
    separate = separated(*LEAVES[style])
    paths, updates = write_pair(EXPERTS, *((separate, dict) if separates_base else (dict, separate)))
    pair = pair_checkpoints(*map(open_checkpoint, paths))
    assert [layer.name for layer in pair.layers] == [
        f"{key}[{expert}]" for key in sorted(EXPERTS) for expert in range(3)
    ]
    for layer in pair.layers:
        np.testing.assert_allclose(layer.update(), updates[layer.key][layer.expert], rtol=2**-24)
    assert pair.unpaired == {}


def test_one_expert_too_few_is_a_failure(write_pair):
    separate = separated(*LEAVES["transformers"])
    shapes = EXPERTS | {"q.weight": (4, 4)}

    def without_last(tensors):
        apart = separate({key: value for key, value in tensors.items() if "experts" in key})
        kept = {key: value for key, value in apart.items() if ".experts.2." not in key}
        return kept | {"q.weight": tensors["q.weight"]}

    paths, _ = write_pair(shapes, without_last)
    report = inspect(paths[1], paths[0], ranks=[1])
    assert [layer.name for layer in report.layers] == ["q"]
    assert not report.complete
    assert all("only in the" in report.failures[name] for name in EXPERTS)
    in_stacks, in_q = sum(np.prod(shape) for shape in EXPERTS.values()), 16
    assert report.compared_fraction == pytest.approx(in_q / (in_q + in_stacks + in_stacks * 2 / 3), rel=1e-12)


def test_experts_are_extracted_as_parameters_with_the_best_update_of_each(write_pair, tmp_path):
    from safetensors.numpy import load_file

    paths, updates = write_pair(EXPERTS)
    report = extract(*paths, tmp_path / "out", rank=2, alpha=2)
    assert report.complete
    assert sorted(report.config["target_parameters"]) == sorted(EXPERTS)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for block in range(2):
        # PEFT wraps the parameters of a module in the order of their definition, the first innermost.
        for name, nesting in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
            lead = f"base_model.model.l.{block}.mlp.experts{nesting}.lora_"
            A, B = tensors[f"{lead}A.weight"].reshape(3, 2, -1), tensors[f"{lead}B.weight"]
            for expert, update in enumerate(updates[f"l.{block}.mlp.experts.{name}"]):
                U, s, Vt = np.linalg.svd(update)
                product = B.reshape(len(B), 2, 3)[:, :, expert] @ A[expert]
                np.testing.assert_allclose(product, (U[:, :2] * s[:2]) @ Vt[:2], atol=1e-6)


@pytest.mark.parametrize("names", ["base", "tuned"])
def test_the_adapter_is_named_as_the_checkpoint_that_will_be_loaded(write_pair, tmp_path, names):
    shapes = tower("model.", 2)
    paths, updates = write_pair(
        shapes, dict, lambda tensors: {f"_orig_mod.{key}": each for key, each in tensors.items()}
    )
    extract(*paths, tmp_path / "out", rank=8, names=names)
    prefix = "_orig_mod." if names == "tuned" else ""
    written = written_updates(tmp_path / "out")
    assert written.keys() == {prefix + key.removesuffix(".weight") for key in shapes}
    for key, update in updates.items():
        np.testing.assert_allclose(written[prefix + key.removesuffix(".weight")], update, atol=1e-6)


def test_how_names_were_aligned_is_in_the_report(write_pair):
    paths, _ = write_pair(
        tower("model.", 2) | {"lm_head.weight": (9, 4)},
        dict,
        lambda tensors: {key.replace("model.", "model.language_model.", 1): each for key, each in tensors.items()},
    )
    report = inspect(paths[1], paths[0], ranks=[1])
    assert report.alignment == (AlignedNames("model.*", "model.language_model.*", 8),)
    assert report.complete
    assert report.compared_fraction == 1.0


def test_names_that_are_the_same_need_no_word(write_pair):
    paths, _ = write_pair(tower("model.", 1))
    assert inspect(paths[1], paths[0], ranks=[1]).alignment == ()


@pytest.mark.parametrize(
    ("shape", "matrix"), [((6, 4, 3), (6, 12)), ((6, 2, 1, 2, 2), (6, 8)), ((6, 2, 3, 3), (6, 18))]
)
def test_convolutions_of_any_axes_are_matrices_of_their_outputs(write_pair, shape, matrix):
    paths, updates = write_pair({"conv.weight": shape})
    [layer] = pair_checkpoints(*map(open_checkpoint, paths)).layers
    assert layer.shape == matrix
    np.testing.assert_allclose(layer.update(), updates["conv.weight"].reshape(matrix), rtol=2**-24)


def test_a_stack_of_one_is_a_matrix(write_pair):
    paths, _ = write_pair({"positions": (1, 7, 4)})
    [layer] = pair_checkpoints(*map(open_checkpoint, paths)).layers
    assert (layer.name, layer.shape) == ("positions", (7, 4))


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"]
)
def test_each_wrapper_is_known(wrapper):
    base = {"one.q.weight": (4, 4), "two.q.weight": (4, 4)}
    tuned = {f"one.{wrapper}.q.weight": (4, 4), f"{wrapper}.two.q.weight": (4, 4)}
    assert aligned(base, tuned) == dict(zip(base, tuned, strict=True))


def test_all_matches_that_are_given_are_taken_with_a_dot_at_the_end_or_without():
    base = {"one.q.weight": (4, 4), "two.q.weight": (4, 4)}
    tuned = {"first.q.weight": (4, 4), "second.q.weight": (4, 4)}
    given_names = {"one.": "first.", "two": "second"}
    assert aligned(base, tuned, given_names=given_names) == dict(zip(base, tuned, strict=True))
