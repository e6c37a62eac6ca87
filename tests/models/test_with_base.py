"""Updates that depend on the base model's weights: dense and exact beside its checkpoint, named without it."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import apply, census, extract, inspect, plan
from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.with_base import open_with_base
from lowrank_core.models.operations.rank_choice import Budget
from tests.models.models_on_disk import written_updates

PAIR = ("lora_down.weight", "lora_up.weight")


@pytest.fixture
def weight(rng):
    return rng.standard_normal((6, 4))


@pytest.fixture
def write_base(tmp_path):
    def write(weights):
        path = tmp_path / "base.safetensors"
        save_file({f"{name}.weight": np.asarray(weight, order="C") for name, weight in weights.items()}, path)
        return path

    return write


def module(tensors, name="lora_unet_blocks_0_q"):
    return {f"{name}.{end}": np.asarray(tensor, order="C") for end, tensor in tensors.items()}


def cayley(blocks):
    skew = blocks - np.swapaxes(blocks, -1, -2)
    identity = np.eye(blocks.shape[-1])
    return (identity + skew) @ np.linalg.inv(identity - skew)


def block_diagonal(blocks):
    size = blocks.shape[-1]
    matrix = np.zeros((len(blocks) * size, len(blocks) * size))
    for i, block in enumerate(blocks):
        matrix[i * size : (i + 1) * size, i * size : (i + 1) * size] = block
    return matrix


def dora(W, update, magnitudes, axis):
    tuned = W + update
    return magnitudes * tuned / np.linalg.norm(tuned, axis=axis, keepdims=True) - W


def tensors_and_updates(rng, W):
    """Return the tensors of a module and its update on the weight W, by kind."""
    m, n = W.shape
    draw = rng.standard_normal
    down, up = draw((2, n)), draw((m, 2))
    pair = {**dict(zip(PAIR, (down, up), strict=True)), "alpha": np.float64(3)}
    rows, columns = draw((m, 1)) ** 2, draw((1, n)) ** 2
    yield "dora", pair | {"dora_scale": rows}, dora(W, 1.5 * up @ down, rows, 1)
    yield "dora on inputs", pair | {"dora_scale": columns}, dora(W, 1.5 * up @ down, columns, 0)
    w1, w2 = draw((3, 2)), draw((2, 2))
    lokr = {"lokr_w1": w1, "lokr_w2": w2, "dora_scale": rows}
    yield "dora of a lokr", lokr, dora(W, np.kron(w1, w2), rows, 1)
    a1, a2, b1, b2 = draw((n, 2)), draw((2, n)), draw((m, 2)), draw((2, n))
    glora = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2, "alpha": np.float64(3)}
    yield "glora", glora, 1.5 * (W @ a1 @ a2 + b1 @ b2)
    blocks, rescale = draw((2, 3, 3)), draw((m, 1))
    R = block_diagonal(cayley(blocks))
    yield "oft", {"oft_blocks": blocks, "alpha": np.float64(0)}, R.T @ W - W
    yield "oft, rescaled", {"oft_blocks": blocks, "rescale": rescale}, rescale * (R.T @ W) - W
    skew = blocks - np.swapaxes(blocks, 1, 2)
    small = blocks * (0.1 * m) / np.linalg.norm(skew)
    constrained = block_diagonal(cayley(small))
    yield "oft, constrained", {"oft_blocks": blocks, "alpha": np.float64(0.1)}, constrained.T @ W - W
    scales = draw(m)
    yield "ia3", {"weight": scales, "on_input": np.int64(0)}, scales[:, np.newaxis] * W
    scales = draw(n)
    yield "ia3 on inputs", {"weight": scales, "on_input": np.int64(1)}, W * scales


KINDS = [kind for kind, *_ in tensors_and_updates(np.random.default_rng(0), np.ones((6, 4)))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora_unet_blocks_0_q", "diffusion_model.blocks.0.q"])
def test_the_update_is_that_of_the_formula(write_file, write_base, tmp_path, rng, weight, kind, name):
    tensors, update = next(rest for each, *rest in tensors_and_updates(rng, weight) if each == kind)
    path, base = write_file(module(tensors, name)), write_base({"blocks.0.q": weight})
    adapter = open_with_base(path, base)
    (layer,) = adapter.layers
    assert layer.shape == weight.shape
    assert np.allclose(layer.update(), update, rtol=1e-5, atol=1e-6)
    assert (adapter.incomplete, adapter.others, adapter.base_updates) == ({}, (), ())
    extract(base, path, tmp_path / "lora.safetensors", rank=4, dtype="float64")
    (written,) = written_updates(tmp_path / "lora.safetensors").values()
    assert np.allclose(written, update, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_base_it_counts_as_not_read(write_file, rng, weight, kind):
    tensors = next(each for name, each, _ in tensors_and_updates(rng, weight) if name == kind)
    path = write_file(module(tensors) | module({"diff": weight}, "whole"))
    inspection = inspect(path)
    assert "lora_unet_blocks_0_q" in inspection.failures
    assert inspection.totals.failures == 1
    assert next(iter(census(path.parent))).failed_layers == 1
    assert "lora_unet_blocks_0_q" in plan(path, budget=Budget(parameters=100)).failures


def test_a_module_that_is_not_in_the_base_is_that_layers_failure(write_file, write_base, rng, weight):
    tensors = next(each for name, each, _ in tensors_and_updates(rng, weight) if name == "glora")
    path = write_file(module(tensors) | module(tensors, "lora_unet_other"))
    adapter = open_with_base(path, write_base({"blocks.0.q": weight}))
    assert [layer.name for layer in adapter.layers] == ["lora_unet_blocks_0_q"]
    assert "does not stand for any module" in adapter.unsupported["lora_unet_other"]


def test_layers_that_stand_for_one_module_are_failures(write_file, write_base, rng, weight):
    tensors = next(each for name, each, _ in tensors_and_updates(rng, weight) if name == "dora")
    path = write_file(module(tensors, "lora_te1_q") | module(tensors, "lora_te2_q"))
    adapter = open_with_base(path, write_base({"q": weight}))
    assert adapter.layers == ()
    assert set(adapter.unsupported) == {"lora_te1_q", "lora_te2_q"}


def test_names_are_matched_by_their_ends(write_file, write_base, rng, weight):
    tensors, update = next(rest for each, *rest in tensors_and_updates(rng, weight) if each == "glora")
    path = write_file(module(tensors, "blocks.0.q"))
    adapter = open_with_base(path, write_base({"model.diffusion_model.blocks.0.q": weight, "blocks.10.q": weight}))
    assert np.allclose(adapter.layers[0].update(), update, rtol=1e-12)


def test_a_weight_of_another_shape_is_that_layers_failure(write_file, write_base, rng, weight):
    tensors = next(each for name, each, _ in tensors_and_updates(rng, weight) if name == "dora")
    adapter = open_with_base(write_file(module(tensors)), write_base({"blocks.0.q": weight.T}))
    assert adapter.layers == ()
    assert "6 × 4, but the base's weight has shape 4 × 6" in adapter.unsupported["lora_unet_blocks_0_q"]


def test_a_name_of_several_modules_says_which_they_are(write_file, write_base, tmp_path, rng, weight):
    draw = rng.standard_normal
    kohya = dict(zip(PAIR, (draw((2, 4)), draw((6, 2))), strict=True))
    path = write_file(module(kohya, "lora_unet_a_b") | module(kohya, "lora_unet_c"))
    report = apply(write_base({"a.b": weight, "a_b": weight, "c": weight}), path, tmp_path / "out", dry_run=True)
    assert "kohya's name 'lora_unet_a_b' stands for each of a.b, a_b" in report.failures["lora_unet_a_b"]
    tensors = next(each for name, each, _ in tensors_and_updates(rng, weight) if name == "glora")
    adapter = open_with_base(write_file(module(tensors, "q")), write_base({"x.q": weight, "y.q": weight}))
    assert "'q' stands for each of x.q, y.q of the base, which end alike" in adapter.unsupported["q"]


def test_the_name_in_the_file_comes_before_its_end(write_file, write_base, rng, weight):
    factors = {f"lora_{end}.weight": draw for end, draw in (("A", rng.random((2, 4))), ("B", rng.random((6, 2))))}
    path = write_file(module(factors, "unet.layers.0.q") | module(factors, "text_encoder.layers.1.q"))
    names = ["unet.layers.0.q", "text_encoder.layers.0.q", "unet.layers.1.q", "text_encoder.layers.1.q"]
    base = write_base({name: weight + number for number, name in enumerate(names)})
    adapter = open_with_base(path, base)
    assert {layer.name: layer.weight.key for layer in adapter.layers} == {
        "layers.0.q": "unet.layers.0.q.weight",
        "text_encoder.layers.1.q": "text_encoder.layers.1.q.weight",
    }


def test_plain_layers_need_no_module_of_the_base(write_file, write_base, rng, weight):
    pair = dict(zip(PAIR, (rng.standard_normal((2, 4)), rng.standard_normal((6, 2))), strict=True))
    path = write_file(module(pair))
    beside = open_with_base(path, write_base({"elsewhere": weight}))
    assert [layer.name for layer in beside.layers] == [layer.name for layer in open_adapter(path).layers]


def test_two_adapters_are_no_adapter_and_base(write_file, rng):
    pair = dict(zip(PAIR, (rng.standard_normal((2, 4)), rng.standard_normal((6, 2))), strict=True))
    path = write_file(module(pair))
    with pytest.raises(ValueError, match="is an adapter"):
        inspect(path, path)


@pytest.mark.parametrize("options", [{"embeddings": ["q"]}, {"transposed": ["q"]}])
def test_options_of_checkpoints_are_refused(write_file, write_base, tmp_path, rng, weight, options):
    pair = dict(zip(PAIR, (rng.standard_normal((2, 4)), rng.standard_normal((6, 2))), strict=True))
    with pytest.raises(ValueError, match="it is for the difference of two checkpoints"):
        extract(write_base({"q": weight}), write_file(module(pair)), tmp_path / "out", rank=1, **options)


def test_a_bias_beside_magnitudes_stays_where_these_are_in_the_update(write_peft, write_base, rng, weight):
    tensors = {
        "q.lora_A.weight": rng.standard_normal((2, 4)),
        "q.lora_B.weight": rng.standard_normal((6, 2)),
        "q.lora_B.bias": np.ones(6),
        "q.lora_magnitude_vector": np.ones(6),
    }
    adapter = open_with_base(write_peft(tensors, use_dora=True), write_base({"q": weight}))
    assert [(other.name, other.scaling, other.follows) for other in adapter.others] == [("q.lora_B.bias", 4.0, "q")]


def test_experts_are_on_the_matrices_of_a_stack_whose_name_ends_as_theirs(write_peft, write_file, rng):
    stack = rng.standard_normal((3, 10, 6))
    factors = {"l.mlp.experts.lora_A.weight": np.ones((6, 6)), "l.mlp.experts.lora_B.weight": np.ones((10, 6))}
    path = write_peft(factors, target_parameters=["mlp.experts.up_proj"], peft_version="0.21.2")
    layers = open_with_base(path, write_file({"model.l.mlp.experts.up_proj": stack})).layers
    assert [layer.name for layer in layers] == [f"l.mlp.experts.up_proj[{index}]" for index in range(3)]
    assert all(np.array_equal(layer.weight.read(), matrix) for layer, matrix in zip(layers, stack, strict=True))
