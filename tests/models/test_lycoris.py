"""LyCORIS' kinds of updates: each dense update is that of its formula, from tensors of random entries."""

import re

import numpy as np
import pytest

from lowrank_core import KroneckerUpdate, LowRankUpdate
from lowrank_core.models import convert, inspect, resize
from lowrank_core.models.formats import open_adapter
from tests.models.models_on_disk import written_updates

NAME = "lora_unet_blocks_0_q"


def dense(layer):
    update = layer.update()
    return np.asarray(update, float) if isinstance(update, np.ndarray) else update.to_dense()


def module(tensors, name=NAME):
    return {f"{name}.{end}": np.asarray(tensor, order="C") for end, tensor in tensors.items()}


def tucker(core, up, down):
    """Σ core[i, j, k] · up[p, i] · down[j, q], flattened over q and k."""
    core = core.reshape(*core.shape[:2], -1)
    return np.einsum("ijk,pi,jq->pqk", core, up, down).reshape(len(up), -1)


def tensors_and_updates(rng):
    """Return the tensors of modules, their updates at scale 1, what divides alpha, and the module's shape, by kind."""
    draw = rng.standard_normal
    down, mid, up = draw((3, 5, 1, 1)), draw((3, 3, 2, 2)), draw((7, 3, 1, 1))
    yield (
        "tucker",
        dict(zip(("lora_down.weight", "lora_mid.weight", "lora_up.weight"), (down, mid, up), strict=True)),
        (
            tucker(mid, up.reshape(7, 3), down.reshape(3, 5)),
            3,
            (7, 5, 2, 2),
        ),
    )
    a1, b1, a2, b2 = draw((7, 2)), draw((2, 9)), draw((7, 2)), draw((2, 9))
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    yield "loha", dict(zip(names, (a1, b1, a2, b2), strict=True)), ((a1 @ b1) * (a2 @ b2), 2, (7, 9))
    large = [draw((7, 5)), draw((5, 9)), draw((7, 5)), draw((5, 9))]
    yield (
        "loha of a rank beyond the matrix's",
        dict(zip(names, large, strict=True)),
        ((large[0] @ large[1]) * (large[2] @ large[3]), 5, (7, 9)),
    )
    t1, t2 = draw((2, 2, 3, 1)), draw((2, 2, 3, 1))
    yield (
        "loha_tucker",
        dict(zip(names, (a1.T, b1, a2.T, b2), strict=True)) | {"hada_t1": t1, "hada_t2": t2},
        (
            tucker(t1, a1, b1) * tucker(t2, a2, b2),
            2,
            (7, 9, 3, 1),
        ),
    )
    w1, w2 = draw((3, 4)), draw((5, 2))
    yield "lokr", {"lokr_w1": w1, "lokr_w2": w2}, (np.kron(w1, w2), None, (15, 8))
    w2_a, w2_b = draw((5, 2)), draw((2, 6))
    yield "lokr_split", {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}, (np.kron(w1, w2_a @ w2_b), 2, (15, 24))
    w1_a, w1_b = draw((3, 1)), draw((1, 4))
    halves = {"lokr_w1_a": w1_a, "lokr_w1_b": w1_b}
    yield "lokr_first_split", halves | {"lokr_w2": w2}, (np.kron(w1_a @ w1_b, w2), 1, (15, 8))
    yield (
        "lokr_both",
        halves | {"lokr_w2_a": w2_a[:, :1], "lokr_w2_b": w2_b[:1]},
        (
            np.kron(w1_a @ w1_b, w2_a[:, :1] @ w2_b[:1]),
            1,
            (15, 24),
        ),
    )
    kernel = draw((5, 2, 3, 3))
    yield (
        "lokr_convolution",
        {"lokr_w1": w1, "lokr_w2": kernel},
        (
            np.einsum("ab,cdkl->acbdkl", w1, kernel).reshape(15, -1),
            None,
            (15, 8, 3, 3),
        ),
    )
    yield (
        "lokr_tucker",
        {"lokr_w1": w1, "lokr_t2": t1, "lokr_w2_a": w2_a.T, "lokr_w2_b": w2_b},
        (
            np.kron(w1, tucker(t1, w2_a, w2_b)),
            2,
            (15, 24, 3, 1),
        ),
    )
    difference = draw((4, 3, 2))
    yield "difference", {"diff": difference}, (difference.reshape(4, 6), None, (4, 3, 2))


KINDS = [kind for kind, _, _ in tensors_and_updates(np.random.default_rng(0))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [None, 0.0, 3.0, -1.0])
@pytest.mark.parametrize("name", [NAME, "diffusion_model.blocks.0.q", "lycoris_blocks_0_q"])
def test_the_update_is_that_of_the_formula(write_file, rng, kind, alpha, name):
    tensors, (update, divisor, dims) = next(rest for each, *rest in tensors_and_updates(rng) if each == kind)
    if alpha is not None:
        tensors["alpha"] = np.float32(alpha)
    adapter = open_adapter(write_file(module(tensors, name)))
    (layer,) = adapter.layers
    scale = alpha / divisor if alpha and divisor else 1.0
    assert (layer.name, layer.placement.dims) == (name.removeprefix("diffusion_model."), dims)
    assert layer.scaling == pytest.approx(scale, rel=1e-15)
    assert np.allclose(dense(layer), scale * update, rtol=1e-12, atol=1e-12)
    assert layer.shape == update.shape
    assert layer.rank >= np.linalg.matrix_rank(update)
    assert adapter.others == ()
    assert adapter.unsupported == {}


@pytest.mark.parametrize(
    ("alpha", "source"),
    [
        (None, "no alpha in the file, which stands for the rank 2 (hada_w1_b): scale 1"),
        (0.0, "alpha 0 in the file, which stands for the rank 2 (hada_w1_b): scale 1"),
        (3.0, "alpha 3 (.alpha) / rank 2 (hada_w1_b)"),
    ],
)
def test_the_source_of_the_scale_says_whether_there_is_an_alpha(write_file, rng, alpha, source):
    tensors = next(each for kind, each, _ in tensors_and_updates(rng) if kind == "loha")
    if alpha is not None:
        tensors["alpha"] = np.float32(alpha)
    (layer,) = open_adapter(write_file(module(tensors))).layers
    assert layer.scaling_source == source


def test_a_whole_difference_keeps_the_dtype_of_the_file(write_file):
    difference = np.arange(6, dtype="f4").reshape(2, 3)
    (layer,) = open_adapter(write_file(module({"diff": difference}))).layers
    update = layer.update()
    assert update.dtype == np.float32
    assert np.array_equal(update, difference)


def test_structured_updates_are_not_made_dense(write_file, rng):
    kinds = {kind: tensors for kind, tensors, _ in tensors_and_updates(rng)}
    tensors = {key: value for kind, each in kinds.items() for key, value in module(each, kind).items()}
    updates = {layer.name: layer.update() for layer in open_adapter(write_file(tensors)).layers}
    assert {kind for kind, update in updates.items() if isinstance(update, KroneckerUpdate)} == {
        kind for kind in KINDS if kind.startswith("lokr")
    }
    assert {kind for kind, update in updates.items() if isinstance(update, LowRankUpdate)} == {
        "tucker",
        "loha",
        "loha_tucker",
    }


def test_all_kinds_beside_lora_in_one_file(write_file, rng):
    kinds = {kind: tensors for kind, tensors, _ in tensors_and_updates(rng)}
    tensors = {key: value for kind, each in kinds.items() for key, value in module(each, kind).items()}
    pair = {"lora_down.weight": np.ones((2, 3)), "lora_up.weight": np.ones((4, 2)), "alpha": np.float32(1)}
    others = {
        "norm.diff": np.ones(4),
        f"{NAME}.diff_b": np.ones(4),
        "norm.w_norm": np.ones(4),
        "norm.b_norm": np.ones(4),
        "out.set_weight": np.ones((4, 3)),
        "bundle_emb.word.clip_l": np.ones((2, 3)),
        "loha.dora_scale": np.ones((7, 1)),
        "strange.thing": np.ones(3),
    }
    adapter = open_adapter(write_file(tensors | module(pair) | others))
    assert {layer.name for layer in adapter.layers} == {*KINDS, NAME}
    assert {other.name for other in adapter.others} == set(others)
    assert {other.name for other in adapter.others if other.meaning == "unknown to LoRA"} == {"strange.thing"}
    assert set(adapter.incomplete) == {"loha"}
    assert adapter.unsupported == {}


@pytest.mark.parametrize("kind", KINDS)
def test_half_an_update_is_that_modules_failure(write_file, rng, kind):
    tensors = next(each for name, each, _ in tensors_and_updates(rng) if name == kind)
    whole = {"lokr_w1": np.ones((2, 2)), "lokr_w2": np.ones((2, 2))}
    for left_out in tensors:
        rest = {end: tensor for end, tensor in tensors.items() if end != left_out}
        if not rest or left_out == "lora_mid.weight":
            continue
        adapter = open_adapter(write_file(module(rest) | module(whole, "whole")))
        assert [layer.name for layer in adapter.layers] == ["whole"], left_out
        assert re.search("but no|disagree", adapter.unsupported[NAME])


def test_factors_that_disagree_are_that_modules_failure(write_file):
    tensors = {"hada_w1_a": np.ones((4, 2)), "hada_w1_b": np.ones((3, 4))}
    tensors |= {"hada_w2_a": np.ones((4, 2)), "hada_w2_b": np.ones((2, 4))}
    with pytest.raises(ValueError, match="disagree: one has rank 2, its partner rank 3"):
        open_adapter(write_file(module(tensors)))


def test_two_updates_of_one_module_are_both_named(write_file):
    pair = {"lora_down.weight": np.ones((2, 3)), "lora_up.weight": np.ones((4, 2)), "diff": np.ones((4, 3))}
    adapter = open_adapter(write_file(module(pair)))
    assert [layer.name for layer in adapter.layers] == [NAME]
    assert "another update" in adapter.unsupported[f"{NAME}.diff"]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {f"{part}{i}.weight": np.ones((2, 2)) for part in "ab" for i in (1, 2)},
            "GLoRA: the update is W·a1·a2 + b1·b2, ",
        ),
        ({"oft_blocks": np.ones((2, 2, 2)), "alpha": np.float32(0)}, "OFT: the update is R·W − W, "),
        ({"oft_blocks": np.ones((2, 2, 2, 2))}, "BOFT: the update is R·W − W, "),
        ({"weight": np.ones(4), "on_input": np.int64(0)}, "IA3: the update is l·W, "),
        (
            {f"{part}.weight": np.ones((2, 2)) for part in ("q_layer", "p_layer")} | {"lambda_layer": np.ones(2)},
            "T-LoRA",
        ),
    ],
)
def test_updates_that_no_file_holds_are_named_and_counted(write_file, tensors, says):
    whole = {"lokr_w1": np.ones((2, 2)), "lokr_w2": np.ones((2, 2))}
    inspection = inspect(write_file(module(tensors) | module(whole, "whole")))
    assert [layer.name for layer in inspection.layers] == ["whole"]
    assert inspection.failures[NAME].removeprefix(f"'{NAME}' is a ").startswith(says)
    assert inspection.not_low_rank == {}
    assert inspection.totals.failures == 1


def test_a_core_of_glora_is_not_left_out_of_its_update(write_file):
    tensors = {f"{part}.weight": np.ones((2, 2)) for part in ("a1", "a2", "b1", "b2", "bm")}
    adapter = open_adapter(write_file(module(tensors) | module({"diff": np.ones((2, 2))}, "whole")))
    assert adapter.base_updates == ()
    assert "Tucker core (bm)" in adapter.unsupported[NAME]


def test_magnitudes_beside_any_kind_say_that_the_figures_are_not_all(write_file, rng):
    for kind, tensors, _ in tensors_and_updates(rng):
        path = write_file(module(tensors | {"dora_scale": np.ones((len(tensors), 1))}, "x"), f"{kind}.safetensors")
        inspection = inspect(path)
        assert [layer.name for layer in inspection.layers] == ["x"]
        assert "DoRA" in inspection.failures["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resized_update_is_a_pair_that_kohyas_readers_know(write_file, tmp_path, rng, kind):
    tensors, (update, divisor, dims) = next(rest for each, *rest in tensors_and_updates(rng) if each == kind)
    out = tmp_path / "out.safetensors"
    resize(write_file(module(tensors | {"alpha": np.float32(2)})), out, rank=2)
    U, values, Vt = np.linalg.svd(update * (2 / divisor if divisor else 1.0), full_matrices=False)
    assert np.allclose(written_updates(out)[NAME], U[:, :2] * values[:2] @ Vt[:2], rtol=1e-9, atol=1e-9)
    (layer,) = open_adapter(out).layers
    assert layer.placement.dims == dims


@pytest.mark.parametrize("kind", ["tucker", "loha", "lokr_split", "difference"])
def test_a_conversion_to_kohyas_format_keeps_the_names(write_file, tmp_path, rng, kind):
    tensors, (update, divisor, _) = next(rest for each, *rest in tensors_and_updates(rng) if each == kind)
    out = tmp_path / "out.safetensors"
    convert(write_file(module(tensors | {"alpha": np.float32(2)})), out, format="kohya")
    assert np.allclose(written_updates(out)[NAME], update * (2 / divisor if divisor else 1.0), rtol=1e-9, atol=1e-9)
