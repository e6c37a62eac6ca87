"""Merged models verified entry by entry: exact bounds, what is beside the layers, and what wrong layers look like."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowrank_core import KroneckerUpdate, LowRankUpdate
from lowrank_core.models import apply, local_processes, verify
from lowrank_core.models.operations.replays import Product, products
from tests.models.test_memory import peak_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.float64, np.float32, np.float16, BFLOAT16]
ALPHA, RANK = 6.0, 3


@pytest.fixture
def write(tmp_path):
    def write(name, tensors):
        path = tmp_path / f"{name}.safetensors"
        save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, path)
        return path

    return write


def drawn(rng, dtype=np.float32, shape=(7, 5), rank=RANK):
    """A base of two layers, a norm and a counter; and factors of both, in float32."""
    names = "model.0.q_proj", "model.1.q_proj"
    base = {f"{name}.weight": rng.standard_normal(shape).astype(dtype) for name in names}
    base |= {"model.norm.weight": rng.standard_normal(6).astype(dtype), "model.steps": np.arange(3)}
    factors = {}
    for name in names:
        factors[f"{name}.lora_down.weight"] = rng.standard_normal((rank, shape[1])).astype(np.float32)
        factors[f"{name}.lora_up.weight"] = rng.standard_normal((shape[0], rank)).astype(np.float32)
        factors[f"{name}.alpha"] = np.array(ALPHA, np.float32)
    return base, factors


def update_of(factors, name="model.0.q_proj"):
    A, B = (factors[f"{name}.lora_{part}.weight"].astype(np.float64) for part in ("down", "up"))
    return ALPHA / len(A) * B @ A


def merged(base, factors, multiple=1.0):
    tensors = dict(base)
    for key in base:
        if "proj" in key:
            update = multiple * update_of(factors, key.removesuffix(".weight"))
            tensors[key] = (base[key].astype(np.float64) + update).astype(base[key].dtype)
    return tensors


@pytest.mark.parametrize("dtype", [*DTYPES, np.dtype(ml_dtypes.float8_e4m3fn)])
@pytest.mark.parametrize("out_dtype", [None, "float64", "float32", "float16", "bfloat16"])
def test_what_apply_writes_is_right_in_every_dtype(write, tmp_path, rng, dtype, out_dtype):
    base, factors = (write(name, each) for name, each in zip(("base", "lora"), drawn(rng, dtype), strict=True))
    applied = apply(base, factors, tmp_path / "out.safetensors", dtype=out_dtype)
    report = verify(base, factors, tmp_path / "out.safetensors")
    assert report.right
    assert report.complete
    assert {layer.replay for layer in report.layers} == {"float64"}
    assert report.equal == 2
    assert [layer.rounding for layer in report.layers] == [layer.rounding for layer in applied.layers]
    assert report.rounding == applied.rounding


@pytest.mark.parametrize(("dtype", "steps"), [(np.float64, 100), (np.float32, 100), (np.float16, 2), (BFLOAT16, 2)])
def test_one_entry_that_is_off_is_found(write, rng, dtype, steps):
    """A product of rank 3 in float32 or float64 may be off by some steps of the sum, and a rounding by half a step."""
    base, factors = drawn(rng, dtype)
    tensors = merged(base, factors)
    weight = tensors["model.1.q_proj.weight"]
    worst = np.unravel_index(np.argmax(np.abs(weight)), weight.shape)
    weight[worst] += weight[worst] * (steps * ml_dtypes.finfo(weight.dtype).eps)
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    (wrong,) = [layer for layer in report.layers if not layer.right]
    assert (wrong.name, wrong.wrong_entries) == ("model.1.q_proj", 1)
    # A step of eps·x is one to two units in the last place of x.
    assert 0.8 * steps <= wrong.max_ulps <= 2 * steps + 1


@pytest.mark.parametrize("rank", [1, 7, 64])
@pytest.mark.parametrize("size", [0.01, 30.0])
def test_float32_products_in_any_order_are_within_the_bound(write, rng, rank, size):
    base, factors = drawn(rng, shape=(40, 30), rank=rank)
    for key, factor in factors.items():
        factors[key] = factor * np.float32(size) if "lora_up" in key else factor
    path, lora = write("base", base), write("lora", factors)
    for order in (np.arange(rank), np.arange(rank)[::-1], rng.permutation(rank)):
        tensors = dict(base)
        for key in ("model.0.q_proj.weight", "model.1.q_proj.weight"):
            A, B = (factors[f"{key.removesuffix('.weight')}.lora_{part}.weight"] for part in ("down", "up"))
            product = np.zeros(base[key].shape, np.float32)
            for k in order:
                product += np.outer(B[:, k], A[k])
            tensors[key] = base[key] + np.float32(ALPHA / rank) * product
        report = verify(path, lora, write("merged", tensors))
        assert report.right
    assert any(layer.replay == "PEFT in float32" for layer in report.layers)


def test_products_in_bfloat16_as_on_a_gpu(write, rng):
    base, factors = drawn(rng, BFLOAT16)
    # A scale that is a power of two would leave the order of rounding and scaling open.
    factors = {key: np.array(5.0, np.float32) if key.endswith("alpha") else each for key, each in factors.items()}
    tensors = dict(base)
    for key in ("model.0.q_proj.weight", "model.1.q_proj.weight"):
        A, B = (factors[f"{key.removesuffix('.weight')}.lora_{part}.weight"] for part in ("down", "up"))
        product = (B.astype(BFLOAT16).astype(np.float32) @ A.astype(BFLOAT16).astype(np.float32)).astype(BFLOAT16)
        update = (np.float32(5.0 / RANK) * product.astype(np.float32)).astype(BFLOAT16)
        tensors[key] = base[key] + update
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    assert report.right
    assert "PEFT in bfloat16, with the product in it" in {layer.replay for layer in report.layers}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("multiple", "diagnosis"),
    [
        (0.0, "not merged: the base's weight"),
        (2.0, "applied twice or the scale applied twice: γ²BA in place of γBA"),
        (-1.0, "subtracted instead of added"),
        (0.5, "without the scale: BA in place of γBA"),
        (3**0.5, "α/r read as rsLoRA: the update multiplied by √r"),
    ],
)
def test_multiples_of_the_update_are_named(write, rng, dtype, multiple, diagnosis):
    # γ is 2.
    base, factors = drawn(rng, dtype)
    report = verify(write("base", base), write("lora", factors), write("merged", merged(base, factors, multiple)))
    assert [layer.diagnosis for layer in report.layers] == [diagnosis] * 2
    assert report.wrong_layers == 2


def test_what_is_like_no_mistake_is_projected_on_the_update(write, rng):
    base, factors = drawn(rng)
    tensors = merged(base, factors, 1.5)
    update = update_of(factors)
    beside = rng.standard_normal(update.shape)
    beside -= np.vdot(beside, update) / np.vdot(update, update) * update
    beside *= 0.25 * np.linalg.norm(update) / np.linalg.norm(beside)
    tensors["model.0.q_proj.weight"] += beside.astype(np.float32)
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    assert report.layers[0].diagnosis == "1.5 times the update, and 0.25 of its norm besides"


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_a_merge_in_a_coarser_dtype_is_named(write, rng, dtype):
    base, factors = drawn(rng)
    coarse = merged({key: each.astype(dtype) if "proj" in key else each for key, each in base.items()}, factors)
    tensors = {key: each.astype(base[key].dtype) for key, each in coarse.items()}
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    name = np.dtype(dtype).name
    assert {layer.diagnosis for layer in report.layers} == {
        f"all its values are numbers of {name}: merged in {name}, and stored in float32"
    }


def test_a_model_merged_and_stored_in_a_coarser_dtype_is_right(write, rng):
    base, factors = drawn(rng)
    half = {key: tensor.astype(BFLOAT16) if tensor.dtype == np.float32 else tensor for key, tensor in base.items()}
    for name, tensors in (("merged", merged(half, factors)), ("rounded", merged(base, factors))):
        stored = {key: tensor.astype(half[key].dtype) for key, tensor in tensors.items()}
        report = verify(write("base", base), write("lora", factors), write(name, stored))
        assert report.right, name


def test_an_update_below_half_a_step_is_lost_whoever_merges(write, rng):
    base, factors = drawn(rng, BFLOAT16)
    for key, factor in factors.items():
        factors[key] = factor * np.float32(1e-4) if "lora_up" in key else factor
    base = {key: (np.abs(each) + 1).astype(BFLOAT16) if each.dtype == BFLOAT16 else each for key, each in base.items()}
    report = verify(write("base", base), write("lora", factors), write("merged", base))
    assert report.right
    assert (report.rounding.below_half_ulp, report.rounding.unchanged) == (1.0, 1.0)
    assert np.isclose(report.rounding.error, 1.0, rtol=1e-9)


def test_all_else_is_as_in_the_base_bit_by_bit(write, rng):
    base, factors = drawn(rng)
    base["model.norm.weight"][0] = 0.0
    tensors = merged(base, factors)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
    tensors["model.norm.weight"][0] = -0.0
    tensors["model.steps"] = tensors["model.steps"] + [0, 1, 1]
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    assert report.differences == {
        "model.norm.weight": "differs from the base's in 1 of 6 entries",
        "model.steps": "differs from the base's in 2 of 3 entries",
    }
    assert (report.right, report.wrong_layers) == (False, 0)
    # In another dtype: the base's, rounded to it.
    stored = {key: each.astype(BFLOAT16) if each.dtype == np.float32 else each for key, each in base.items()}
    report = verify(
        write("base", base),
        write("lora", factors),
        write("merged", merged(base, factors) | {key: each for key, each in stored.items() if "proj" not in key}),
    )
    assert report.right


def test_a_tensor_of_another_shape_is_named_with_both_shapes(write, rng):
    base, factors = drawn(rng)
    tensors = merged(base, factors) | {"model.norm.weight": np.ones(7, np.float32)}
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    assert report.differences == {"model.norm.weight": "shapes differ: 6 and 7"}


def test_tensors_of_one_side_are_named_but_for_copies(write, rng):
    base, factors = drawn(rng)
    base |= {"embed.weight": rng.standard_normal((4, 5)), "v.weight": rng.standard_normal((4, 5))}
    base["head.weight"] = base["embed.weight"]
    tensors = merged(base, factors)
    del tensors["head.weight"], tensors["v.weight"], tensors["model.1.q_proj.weight"]
    tensors["tied.weight"] = tensors["embed.weight"]
    tensors["other.weight"] = np.ones((2, 3))
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    assert {key: text.partition(":")[0] for key, text in report.differences.items()} == {
        "model.1.q_proj.weight": "not in the merged model",
        "other.weight": "only in the merged model",
        "v.weight": "not in the merged model",
    }


@pytest.mark.parametrize("which", ["base", "lora", "merged"])
def test_nan_in_one_layer_is_one_failure(write, rng, which):
    base, factors = drawn(rng)
    tensors = merged(base, factors)
    sides = {"base": base, "lora": factors, "merged": tensors}
    key = "model.1.q_proj.lora_up.weight" if which == "lora" else "model.1.q_proj.weight"
    sides[which] = sides[which] | {key: sides[which][key].copy()}
    sides[which][key][1, 1] = np.nan
    report = verify(*(write(name, each) for name, each in sides.items()))
    assert report.failures.keys() == {"model.1.q_proj"}
    assert "NaN or infinity in 1 of its" in report.failures["model.1.q_proj"]
    assert [(layer.name, layer.right) for layer in report.layers] == [("model.0.q_proj", True)]
    assert (report.right, report.complete) == (False, False)


def test_a_weight_of_another_shape_is_that_layers_failure(write, rng):
    base, factors = drawn(rng)
    tensors = merged(base, factors) | {"model.1.q_proj.weight": np.ones((7, 6), np.float32)}
    paths = [write(name, each) for name, each in (("base", base), ("lora", factors), ("merged", tensors))]
    report = verify(*paths)
    assert report.failures.keys() == {"model.1.q_proj"}
    assert [report.base, report.adapter, report.merged] == [str(path) for path in paths]
    assert (report.right, report.complete) == (False, False)


def test_workers_change_nothing(write, rng):
    base, factors = drawn(rng)
    paths = [write(name, each) for name, each in (("base", base), ("lora", factors), ("merged", merged(base, factors)))]
    with local_processes(1) as processes, ThreadPoolExecutor(2) as threads:
        reports = [verify(*paths, executor=executor) for executor in (None, threads, processes)]
    assert reports[0].right
    assert reports[0] == reports[1] == reports[2]


def test_names_of_the_model_may_have_other_beginnings(write, rng):
    base, factors = drawn(rng)
    tensors = {f"base_model.model.{key}": each for key, each in merged(base, factors).items()}
    report = verify(write("base", base), write("lora", factors), write("merged", tensors))
    assert report.right
    assert [(way.base, way.tuned) for way in report.alignment] == [("*", "base_model.model.*")]


def test_it_takes_no_more_for_twelve_layers_than_for_three(tmp_path):
    shape, layer = (128, 1024), 128 * 1024 * 4
    peaks = []
    for layers in (3, 12):
        rng = np.random.default_rng(layers)
        weights = {f"model.{place}.weight": rng.standard_normal(shape, dtype=np.float32) for place in range(layers)}
        lora = {
            f"{key.removesuffix('.weight')}.lora_{part}.weight": rng.standard_normal(size, dtype=np.float32)
            for key in weights
            for part, size in (("down", (8, shape[1])), ("up", (shape[0], 8)))
        }
        paths = [tmp_path / f"{name}{layers}.safetensors" for name in ("base", "lora", "merged")]
        save_file(weights, paths[0])
        save_file(lora, paths[1])
        apply(*paths)
        peaks.append(peak_of(lambda paths=paths: verify(*paths)))
    few, many = peaks
    assert few > 2 * layer
    assert many < few + layer / 2


def test_the_base_has_to_be_that_of_the_adapter(write, rng):
    base, factors = drawn(rng)
    lora = write("lora", factors)
    with pytest.raises(ValueError, match="is an adapter"):
        verify(lora, lora, write("merged", base))
    report = verify(write("base", {"else.weight": np.eye(2)}), lora, write("merged", {"else.weight": np.eye(2)}))
    assert report.failures.keys() == {"model.0.q_proj", "model.1.q_proj"}
    assert load_file(write("merged", base)).keys() == base.keys()


def test_entries_that_differ_are_counted_over_all_blocks_of_a_tensor(rng, write):
    base, factors = drawn(rng)
    base["model.table"] = np.zeros((2049, 2048), np.float16)
    found = merged(base, factors)
    found["model.table"] = base["model.table"].copy()
    found["model.table"][[0, -1], 3] = 1.0
    report = verify(write("base", base), write("adapter", factors), write("merged", found))
    assert report.differences == {"model.table": "differs from the base's in 2 of 4,196,352 entries"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_error_allowed_to_a_product_is_that_of_its_roundings(dtype):
    product = Product(np.ones((1, 1)), np.full((1, 1), 3.0), 5)
    bound = 0.0
    for name in {dtype, "float64"}:
        # Half of the distance from 1 to the next number, and the smallest normal number, as fractions.
        unit, smallest = {
            "float64": (Fraction(1, 2**53), Fraction(1, 2**1022)),
            "float32": (Fraction(1, 2**24), Fraction(1, 2**126)),
            "bfloat16": (Fraction(1, 2**8), Fraction(1, 2**126)),
        }[name]
        bound += float(5 * unit / (1 - 5 * unit) * 3 + 5 * smallest)
    assert product.error(dtype) == pytest.approx(np.full((1, 1), bound), rel=1e-14)


def test_an_entry_has_a_rounding_for_each_term_of_its_factors_and_two_more(rng):
    low_rank = LowRankUpdate(rng.standard_normal((4, 3)), rng.standard_normal((3, 4)))
    for update, roundings in ((low_rank, 5), (KroneckerUpdate(rng.standard_normal((2, 2)), low_rank), 6)):
        assert {product.roundings for _, product in products(update, "float32")} == {roundings}
