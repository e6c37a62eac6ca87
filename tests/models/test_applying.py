"""A base model with an adapter applied: rounded once, all of it or named, written whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lowrank_core.models import apply, verify
from tests.models.models_on_disk import fingerprint
from tests.models.test_memory import peak_of

SHAPES = {"layers.0.q_proj": (6, 4), "layers.0.up": (10, 4), "layers.1.q_proj": (6, 4)}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def write_base(tmp_path, rng):
    """Write a base of two shards with a norm, a counter and the files that a model has beside its weights."""

    def write(dtype=np.float32, folder="base", extra=()):
        path = tmp_path / folder
        path.mkdir()
        weights = {f"model.{name}.weight": rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
        shards = {
            "model-00001-of-00002.safetensors": weights,
            "model-00002-of-00002.safetensors": {
                "model.norm.weight": rng.standard_normal(4).astype(dtype),
                "model.steps": np.array(7),
                **dict(extra),
            },
        }
        for name, tensors in shards.items():
            save_file(tensors, path / name, metadata={"format": "pt", "shard": name})
        weight_map = {key: name for name, tensors in shards.items() for key in tensors}
        index = {"metadata": {"total_size": 1, "total_parameters": 3}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        (path / "config.json").write_text('{"model_type": "tiny", "dtype": "bfloat16"}')
        (path / "tokenizer.json").write_text("{}")
        (path / "pytorch_model.bin").write_text("other weights")
        (path / "original").mkdir()
        return path

    return write


@pytest.fixture
def adapter(write_peft, rng):
    return write_peft(factors(rng))


def factors(rng, shapes=None):
    return {
        f"model.{name}.lora_{part}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, (m, n) in (shapes or SHAPES).items()
        for part, shape in (("A", (2, n)), ("B", (m, 2)))
    }


def tensors_in(path):
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def exact_sum(weight, adapter, name, scaling=4.0):
    """W + γBA without any rounding."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.model.{name}.lora_{part}.weight"] for part in "AB")
    return [
        [
            Fraction(float(weight[i, j]))
            + Fraction(scaling) * sum(Fraction(float(B[i, k])) * Fraction(float(A[k, j])) for k in range(len(A)))
            for j in range(weight.shape[1])
        ]
        for i in range(len(weight))
    ]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("out_dtype", [None, "float64", "float32", "float16", "bfloat16"])
def test_each_entry_is_the_nearest_number_of_the_dtype(write_base, adapter, tmp_path, dtype, out_dtype):
    base = write_base(dtype)
    report = apply(base, adapter, tmp_path / "out", dtype=out_dtype)
    before, after = tensors_in(base), tensors_in(tmp_path / "out")
    assert before.keys() == after.keys()
    assert (report.complete, report.copied, len(report.layers)) == (True, 2, 3)
    for name in SHAPES:
        key = f"model.{name}.weight"
        assert after[key].dtype.name == (out_dtype or np.dtype(dtype).name)
        info = ml_dtypes.finfo(after[key].dtype)
        for exact, stored in zip(
            np.ravel(exact_sum(before[key], adapter, name)), after[key].ravel().astype(np.float64), strict=True
        ):
            # Half a step of the stored number, and what a float64 product of rank 2 may be off by.
            half_step = Fraction(abs(stored)) * Fraction(float(info.eps)) / 2 + Fraction(2) ** -1074
            assert abs(Fraction(stored) - exact) <= half_step + Fraction(2) ** -46
    for key in ("model.norm.weight", "model.steps"):
        assert after[key].tobytes() == before[key].tobytes()
        assert after[key].dtype == before[key].dtype


def test_ties_are_broken_by_what_is_beyond_float32(write_file, tmp_path):
    # 1 + 2⁻⁸ is between two numbers of bfloat16, and 2⁻⁴⁰ decides; by way of float32 it would be lost.
    base = write_file({"q.weight": np.ones((1, 2), BFLOAT16)}, "base.safetensors")
    lora = {"q.lora_down.weight": np.eye(2), "q.lora_up.weight": np.array([[2.0**-8 + 2.0**-40, 2.0**-8]])}
    apply(base, write_file(lora, "lora.safetensors"), tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")["q.weight"]
    assert merged.astype(float).tolist() == [[1 + 2.0**-7, 1.0]]


def test_the_folder_is_like_the_bases(write_base, adapter, tmp_path):
    base = write_base(BFLOAT16)
    report = apply(base, adapter, tmp_path / "out", dtype="float32")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names == sorted(["config.json", *shards, "model.safetensors.index.json", "tokenizer.json"])
    assert sorted(report.files) == names
    assert report.skipped_files.keys() == {"pytorch_model.bin", "original"}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    sizes = {key: tensor.nbytes for key, tensor in tensors_in(tmp_path / "out").items()}
    assert index["metadata"] == {"total_size": sum(sizes.values()), "total_parameters": 3}
    with safe_open(tmp_path / "out" / shards[0], "numpy") as file:
        assert file.metadata() == {"format": "pt", "shard": shards[0]}
    # A loader would round the weights back to what it says.
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_losses_are_those_of_their_definitions(write_base, tmp_path, write_peft, rng):
    base = write_base(BFLOAT16)
    small = {key: tensor * np.float32(0.02) for key, tensor in factors(rng).items()}
    adapter = write_peft(small)
    report = apply(base, adapter, tmp_path / "out")
    before, after = tensors_in(base), tensors_in(tmp_path / "out")
    energies = []
    for layer in report.layers:
        W, M = (tensors[f"{layer.name}.weight"].astype(np.float64) for tensors in (before, after))
        exact = np.array(exact_sum(W, adapter, layer.name.removeprefix("model."))).astype(np.float64)
        delta = exact - W
        ulp = 2.0 ** (np.floor(np.log2(np.abs(W))) - 7)
        loss = layer.rounding
        assert np.isclose(loss.norm, np.linalg.norm(delta), rtol=1e-9)
        assert np.isclose(loss.error, np.linalg.norm(M - exact) / np.linalg.norm(delta), rtol=1e-9)
        assert loss.below_half_ulp == np.mean(np.abs(delta) < ulp / 2)
        assert loss.unchanged == np.mean(W == M)
        energies.append((loss.norm**2, loss.lost**2, loss.unchanged * loss.entries))
    norm, lost, unchanged = np.sum(energies, axis=0)
    total = report.rounding
    assert 0 < total.unchanged < 1
    assert np.allclose([total.norm**2, total.lost**2, total.unchanged * total.entries], [norm, lost, unchanged])
    assert np.isclose(total.error, np.sqrt(lost / norm))


def test_what_cannot_be_applied_is_named_and_the_rest_written(write_base, write_peft, tmp_path, rng):
    tensors = factors(rng) | factors(rng, {"layers.7.q_proj": (6, 4), "layers.0.up": (9, 4)})
    tensors["model.layers.1.q_proj.lora_B.weight"][2, 1] = np.nan
    tensors["something"] = np.ones(3, np.float32)
    base = write_base(np.float16)
    report = apply(base, write_peft(tensors), tmp_path / "out")
    assert [layer.name for layer in report.layers] == ["model.layers.0.q_proj"]
    reasons = report.failures
    assert reasons.keys() == {"model.layers.0.up", "model.layers.1.q_proj", "model.layers.7.q_proj"}
    assert "update of 9 × 4, but the base's weight has shape 10 × 4" in reasons["model.layers.0.up"]
    assert "NaN" in reasons["model.layers.1.q_proj"]
    assert "does not stand for any module of the base" in reasons["model.layers.7.q_proj"]
    assert report.skipped.keys() == {"something"}
    assert not report.complete
    before, after = tensors_in(base), tensors_in(tmp_path / "out")
    for key in ("model.layers.0.up.weight", "model.layers.1.q_proj.weight"):
        assert after[key].tobytes() == before[key].tobytes()


def test_a_sum_beyond_the_dtype_is_a_failure_that_leaves_the_weight(write_file, tmp_path):
    # The last block of rows alone is beyond float16, when the others are written already.
    weight = np.ones((3, 1 << 17), np.float16)
    weight[2] = 6e4
    base = write_file({"q.weight": weight, "v.weight": np.eye(2)}, "base.safetensors")
    lora = {"q.lora_down.weight": np.full((1, 1 << 17), 200.0), "q.lora_up.weight": np.full((3, 1), 200.0)}
    lora |= {"v.lora_down.weight": np.eye(2), "v.lora_up.weight": np.eye(2)}
    report = apply(base, write_file(lora, "lora.safetensors"), tmp_path / "out.safetensors")
    assert "131072 of the 131072 entries from row 2 on do not fit float16" in report.failures["q"]
    after = tensors_in(tmp_path / "out.safetensors")
    assert np.array_equal(after["q.weight"], weight)
    assert np.array_equal(after["v.weight"], 2 * np.eye(2))


def test_biases_and_tensors_in_full_are_applied_as_peft_does(write_base, write_peft, tmp_path, rng):
    bias, head = rng.standard_normal(6).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float32)
    tensors = factors(rng) | {
        "model.layers.0.q_proj.lora_B.bias": bias,
        "model.layers.0.up.lora_B.bias": np.ones(10, np.float32),
        "model.norm.weight": np.ones(4, np.float32),
        "score.weight": head,
    }
    base = write_base(np.float64, extra={"model.layers.0.q_proj.bias": np.ones(6)}.items())
    report = apply(base, write_peft(tensors, modules_to_save=["score", "norm"]), tmp_path / "out")
    after = tensors_in(tmp_path / "out")
    assert np.array_equal(after["model.layers.0.q_proj.bias"], 1 + 4.0 * bias.astype(np.float64))
    assert after["model.norm.weight"].tolist() == [1.0] * 4
    assert np.array_equal(after["score.weight"], head)
    assert report.replaced["model.norm.weight"].startswith("replaced: trained in full")
    assert report.replaced["score.weight"].startswith("new: trained in full")
    # The base has no bias there, and PEFT refuses to merge it.
    assert report.skipped.keys() == {"model.layers.0.up.lora_B.bias"}


def test_layers_stored_as_in_out_are_transposed(write_file, write_peft, tmp_path, rng):
    weights = {"h.0.attn.c_attn.weight": (4, 6), "h.0.attn.c_proj.weight": (4, 4), "lm_head.weight": (4, 4)}
    base = tmp_path / "gpt" / "model.safetensors"
    write_file({key: np.zeros(shape) for key, shape in weights.items()}, "gpt/model.safetensors")
    (base.parent / "config.json").write_text('{"model_type": "gpt2"}')
    maps = {key.removesuffix(".weight"): shape[::-1] for key, shape in weights.items()}
    tensors = {
        f"transformer.{name}.lora_{part}.weight": rng.standard_normal(shape)
        for name, (m, n) in maps.items()
        for part, shape in (("A", (2, n)), ("B", (m, 2)))
    }
    # Of a model with both kinds of layers, PEFT saves what was right for the last of them.
    for fan_in_fan_out in (True, False):
        adapter = write_peft(tensors, f"adapter{fan_in_fan_out}", fan_in_fan_out=fan_in_fan_out)
        apply(base, adapter, tmp_path / "out.safetensors", force=True)
        after = load_file(tmp_path / "out.safetensors")
        for name in maps:
            B, A = (tensors[f"transformer.{name}.lora_{part}.weight"] for part in "BA")
            update = 4.0 * B @ A
            assert np.allclose(after[f"{name}.weight"], update.T if "c_" in name else update)


def test_a_quantised_base_is_written_dequantised(write_file, write_peft, tmp_path, rng):
    numbers = (rng.integers(-100, 100, (6, 4)) / 8).astype(ml_dtypes.float8_e4m3fn)
    scales = rng.uniform(0.01, 2, (6, 1)).astype(np.float32)
    names = "model.layers.0.q_proj", "model.layers.0.k_proj"
    tensors = {f"{name}.weight": numbers for name in names} | {f"{name}.weight_scale": scales for name in names}
    base = write_file(tensors, "fp8/model.safetensors").parent
    (base / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}, "model_type": "tiny"}')
    adapter = write_peft({key: each for key, each in factors(rng).items() if "0.q_proj" in key})
    report = apply(base, adapter, tmp_path / "out")
    dequantised = numbers.astype(np.float32) * scales
    after = tensors_in(tmp_path / "out")
    assert sorted(after) == sorted(f"{name}.weight" for name in names) == sorted(report.dequantised)
    assert np.array_equal(after["model.layers.0.k_proj.weight"], dequantised)
    expected = np.array(exact_sum(dequantised, adapter, "layers.0.q_proj")).astype(np.float64)
    assert np.array_equal(after["model.layers.0.q_proj.weight"], expected.astype(np.float32))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "tiny"}
    assert verify(base, adapter, tmp_path / "out").right


def test_experts_of_a_stack_are_applied_each_to_its_own_matrix(write_file, write_peft, tmp_path, rng):
    stack = rng.standard_normal((3, 6, 4))
    base = write_file({"model.layers.0.mlp.experts.down_proj": stack}, "base.safetensors")
    name = "model.layers.0.mlp.experts"
    A, B = rng.standard_normal((6, 4)), rng.standard_normal((6, 6))
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    adapter = write_peft(tensors, target_parameters=["experts.down_proj"], target_modules=[], peft_version="0.21.0")
    report = apply(base, adapter, tmp_path / "out.safetensors")
    assert [layer.name for layer in report.layers] == [f"{name}.down_proj[{expert}]" for expert in range(3)]
    after = load_file(tmp_path / "out.safetensors")["model.layers.0.mlp.experts.down_proj"]
    for expert in range(3):
        update = 4.0 * B.reshape(6, 2, 3)[..., expert] @ A.reshape(3, 2, 4)[expert]
        assert np.allclose(after[expert], stack[expert] + update)


def test_dora_is_applied_to_the_weight_that_it_was_trained_on(write_file, write_peft, tmp_path, rng):
    W, magnitudes = rng.standard_normal((6, 4)), rng.standard_normal(6) ** 2
    base = write_file({"model.layers.0.q_proj.weight": W}, "base.safetensors")
    tensors = {key: value for key, value in factors(rng).items() if "0.q_proj" in key}
    A, B = (tensors[f"model.layers.0.q_proj.lora_{part}.weight"].astype(np.float64) for part in "AB")
    tensors["model.layers.0.q_proj.lora_magnitude_vector"] = magnitudes
    report = apply(base, write_peft(tensors, use_dora=True), tmp_path / "out.safetensors")
    tuned = W + 4.0 * B @ A
    expected = magnitudes[:, np.newaxis] * tuned / np.linalg.norm(tuned, axis=1, keepdims=True)
    assert np.allclose(load_file(tmp_path / "out.safetensors")["model.layers.0.q_proj.weight"], expected)
    assert report.complete


@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_an_error_leaves_nothing(write_file, write_peft, tmp_path, rng, out, monkeypatch):
    key = "model.layers.0.q_proj.weight"
    base = write_file({key: np.ones((6, 4)), "z": np.ones(3)}, "base.safetensors")
    adapter = write_peft({name: each for name, each in factors(rng).items() if "0.q_proj" in name})
    before = sorted(tmp_path.iterdir())

    def fail(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(base, adapter, tmp_path / out, progress=fail)
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^no layer of .* could be applied; the first of 1"):
        apply(base, write_peft(factors(rng, {"other": (2, 2)}), "other"), tmp_path / out)
    assert not (tmp_path / out).exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
def test_a_killed_process_leaves_the_old_model_whole(write_base, adapter, tmp_path):
    base, out = write_base(), tmp_path / "out"
    apply(base, adapter, out, dtype="bfloat16")
    before = fingerprint(out)
    script = textwrap.dedent(
        """
        import os, signal, sys
        from lowrank_core.models import apply, verify

        base, adapter, out = sys.argv[1:]
        apply(base, adapter, out, force=True, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        """
    )
    command = [sys.executable, "-c", script, str(base), str(adapter), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert fingerprint(out) == before


def test_bad_requests_are_explained(write_base, adapter, write_peft, tmp_path, rng):
    base = write_base()
    with pytest.raises(ValueError, match=r"^unsupported dtype 'int8': float64"):
        apply(base, adapter, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="the base has 2 shards: give the name of a folder"):
        apply(base, adapter, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="is an adapter"):
        apply(adapter, adapter, tmp_path / "out")
    with pytest.raises(FileExistsError, match="never written over its own input"):
        apply(base, adapter, base, force=True)
    with pytest.raises(ValueError, match="initialised by 'pissa'"):
        apply(base, write_peft(factors(rng), "pissa", init_lora_weights="pissa"), tmp_path / "out")
    report = apply(base, tmp_path / "pissa", tmp_path / "out", base_restored=True, dry_run=True)
    assert (report.written, (tmp_path / "out").exists()) == (False, False)


def test_a_pipeline_is_refused_for_one_of_its_components(write_base, adapter, tmp_path):
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    write_base(folder="pipeline/unet")
    (pipeline / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a pipeline of several models \(unet\).* give the folder of one component"):
        apply(pipeline, adapter, tmp_path / "out")
    assert apply(pipeline / "unet", adapter, tmp_path / "out").complete


def test_it_takes_no_more_for_twelve_layers_than_for_three(tmp_path):
    shape, layer = (128, 1024), 128 * 1024 * 4
    peaks = []
    for layers in (3, 12):
        rng = np.random.default_rng(layers)
        weights = {
            f"layers.{place}.proj.weight": rng.standard_normal(shape, dtype=np.float32) for place in range(layers)
        }
        save_file(weights, tmp_path / "base.safetensors")
        lora = {}
        for key in weights:
            module = key.removesuffix(".weight")
            lora[f"{module}.lora_down.weight"] = rng.standard_normal((8, shape[1]), dtype=np.float32)
            lora[f"{module}.lora_up.weight"] = rng.standard_normal((shape[0], 8), dtype=np.float32)
        save_file(lora, tmp_path / "lora.safetensors")
        paths = (tmp_path / "base.safetensors", tmp_path / "lora.safetensors", tmp_path / "out.safetensors")
        peaks.append(peak_of(lambda paths=paths: apply(*paths, force=True)))
    few, many = peaks
    assert few > layer
    assert many < few + layer / 2


def test_a_tensor_in_full_of_another_shape_is_skipped_for_that(write_base, write_peft, tmp_path, rng):
    tensors = factors(rng) | {"model.norm.weight": np.ones(3, np.float32)}
    report = apply(write_base(), write_peft(tensors, modules_to_save=["norm"]), tmp_path / "out")
    (reason,) = report.skipped.values()
    assert reason.startswith("trained in full")
    assert reason.endswith("; the base's has shape 4, and config.json describes that")
