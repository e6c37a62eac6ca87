"""Single files of factors under every naming: the update that their readers apply, and the same names written back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lowrank_core.cli.app import main
from lowrank_core.models import convert, inspect, merge, open_adapter, resize

PAIRS = {
    "diffusers": (".lora_A.weight", ".lora_B.weight"),
    "diffusers, default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers, bare": (".lora_A", ".lora_B"),
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "old-diffusers": (".lora.down.weight", ".lora.up.weight"),
    "old-diffusers, text encoder": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "old-diffusers, processors": ("_lora.down.weight", "_lora.up.weight"),
}
SHAPES = {"blocks.0.attn.to_q": (8, 4, 6), "blocks.1.ff": (12, 5, 7)}


def pair(rng, m, r, n):
    return rng.standard_normal((m, r), dtype="f4"), rng.standard_normal((r, n), dtype="f4")


@pytest.fixture
def write_pairs(write_file, rng):
    """Write a file of pairs, with `alphas` by module or none; return its path and the updates by module."""

    def write(ends, prefix="", alphas=None, **more):
        tensors, updates = {}, {}
        for module, (m, r, n) in SHAPES.items():
            B, A = pair(rng, m, r, n)
            tensors |= {f"{prefix}{module}{ends[0]}": A, f"{prefix}{module}{ends[1]}": B}
            updates[module] = B.astype(float) @ A
            if alphas is not None:
                tensors[f"{prefix}{module}.alpha"] = np.array(alphas[module], "f4")
                updates[module] *= alphas[module] / r
        return write_file(tensors | more), updates

    return write


def read(path):
    return {layer.name: layer.update().to_dense() for layer in open_adapter(path).layers}


@pytest.mark.parametrize("naming", PAIRS)
@pytest.mark.parametrize("prefix", ["", "transformer.", "unet.", "diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("alphas", [None, dict(zip(SHAPES, (2.0, 8.0), strict=True))])
def test_every_naming_is_read_with_its_scale_and_written_back(write_pairs, tmp_path, naming, prefix, alphas):
    path, updates = write_pairs(PAIRS[naming], prefix, alphas)
    adapter = open_adapter(path)
    assert adapter.format == naming.partition(",")[0]
    assert (adapter.others, adapter.unsupported) == ((), {})
    found = read(path)
    assert found.keys() == updates.keys()
    for name, update in updates.items():
        assert np.allclose(found[name], update, rtol=0, atol=1e-6)
    report = resize(path, tmp_path / "smaller.safetensors", rank=2)
    written = load_file(tmp_path / "smaller.safetensors")
    assert written.keys() - {f"{prefix}{module}.alpha" for module in SHAPES} <= load_file(path).keys()
    for of_layer in report.layers:
        u, s, vt = np.linalg.svd(updates[of_layer.name])
        best = u[:, :2] * s[:2] @ vt[:2]
        assert np.allclose(read(tmp_path / "smaller.safetensors")[of_layer.name], best, rtol=0, atol=1e-5)


def test_an_alpha_of_zero_is_zero_in_diffusers_and_the_rank_in_kohyas_format(write_pairs):
    zero = dict.fromkeys(SHAPES, 0.0)
    path, _ = write_pairs(PAIRS["diffusers"], alphas=zero)
    assert [layer.scaling for layer in open_adapter(path).layers] == [0.0, 0.0]
    path, _ = write_pairs(PAIRS["kohya"], alphas=zero)
    assert [layer.scaling for layer in open_adapter(path).layers] == [1.0, 1.0]


# PEFT matches a pattern against the name in the component, as here where it begins with "^".
CONFIG = {"r": 4, "lora_alpha": 16, "use_rslora": True, "rank_pattern": {"ff": 5}, "alpha_pattern": {"^blocks.1.ff": 3}}


@pytest.mark.parametrize("component", ["", "transformer."])
def test_the_configuration_in_the_header_is_the_files_own(write_file, tmp_path, rng, component):
    tensors, updates = {}, {}
    for module, (m, r, n) in SHAPES.items():
        B, A = pair(rng, m, r, n)
        tensors |= {f"{component}{module}.lora_A.weight": A, f"{component}{module}.lora_B.weight": B}
        updates[module] = (3 if module.endswith("ff") else 16) / np.sqrt(r) * (B.astype(float) @ A)
    metadata = {"lora_adapter_metadata": json.dumps({f"{component}{key}": value for key, value in CONFIG.items()})}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata=metadata | {"format": "pt"})
    for name, update in read(path).items():
        assert np.allclose(update, updates[name], rtol=1e-6, atol=1e-6)
    resize(path, tmp_path / "same.safetensors")
    for name, update in read(tmp_path / "same.safetensors").items():
        assert np.allclose(update, updates[name], rtol=0, atol=1e-4)
    with safe_open(tmp_path / "same.safetensors", "numpy") as file:
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
        assert file.metadata()["format"] == "pt"
    assert stored[f"{component}use_rslora"] is True
    assert {name for name in stored if not name.startswith(component)} == set()


def test_several_namings_in_one_file(write_pairs, tmp_path, rng):
    B, A = pair(rng, 9, 3, 5)
    more = {"lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B, "lora_unet_x.alpha": np.float32(6)}
    path, updates = write_pairs(PAIRS["diffusers"], "transformer.", **more)
    updates["lora_unet_x"] = 2 * (B.astype(float) @ A)
    assert read(path).keys() == updates.keys()
    resize(path, tmp_path / "same.safetensors")
    assert load_file(tmp_path / "same.safetensors").keys() == load_file(path).keys()
    for name, update in read(tmp_path / "same.safetensors").items():
        assert np.allclose(update, updates[name], rtol=0, atol=1e-5)


def test_one_incomplete_layer_is_its_own_failure(write_pairs, rng):
    path, updates = write_pairs(PAIRS["diffusers"], **{"broken.lora_A.weight": np.ones((2, 3), "f4")})
    adapter = open_adapter(path)
    assert {layer.name for layer in adapter.layers} == set(updates)
    assert "has lora_A but no lora_B" in adapter.unsupported["broken"]
    assert main(["inspect", str(path)]) == 1


def test_two_components_with_one_name_keep_theirs(write_file, rng):
    tensors = {}
    for component in ("transformer", "unet"):
        B, A = pair(rng, 4, 2, 3)
        tensors |= {f"{component}.to_q.lora_A.weight": A, f"{component}.to_q.lora_B.weight": B}
    assert [layer.name for layer in open_adapter(write_file(tensors)).layers] == ["transformer.to_q", "unet.to_q"]


def test_the_base_models_names_of_attention_processors_and_of_xlabs(write_file, rng):
    names = {
        "unet.attn1.processor.to_out_lora": "attn1.to_out.0",
        "unet.attn1.processor.to_q_lora": "attn1.to_q",
        "double_blocks.3.processor.qkv_lora1": "double_blocks.3.img_attn.qkv",
        "double_blocks.3.processor.proj_lora2": "double_blocks.3.txt_attn.proj",
    }
    tensors = {}
    for module in names:
        B, A = pair(rng, 4, 2, 3)
        tensors |= {f"{module}.down.weight": A, f"{module}.up.weight": B}
    assert {layer.name for layer in open_adapter(write_file(tensors)).layers} == set(names.values())


@pytest.mark.parametrize(
    "magnitudes",
    [
        ".dora_scale",
        ".lora_magnitude_vector",
        ".lora_magnitude_vector.weight",
        ".lora_magnitude_vector.default.weight",
    ],
)
def test_biases_and_magnitudes_follow_their_layer(write_pairs, magnitudes):
    module = next(iter(SHAPES))
    more = {f"{module}.lora_B.bias": np.full(8, 2, "f4"), f"{module}{magnitudes}": np.ones(8, "f4")}
    path, _ = write_pairs(PAIRS["diffusers"], alphas=dict.fromkeys(SHAPES, 8.0), **more)
    others = {other.name.removeprefix(module): other for other in open_adapter(path).others}
    assert others[".lora_B.bias"].scaling == 2.0
    assert others[magnitudes].magnitudes
    assert {other.follows for other in others.values()} == {module}
    assert main(["inspect", str(path)]) == 1


class TestConvert:
    """The same factors in another format."""

    @pytest.mark.parametrize("target", ["peft", "kohya"])
    def test_factors_are_copied_to_the_bit_where_the_scale_can_be_said(self, write_pairs, tmp_path, target):
        path, updates = write_pairs(PAIRS["diffusers"], "transformer.", dict(zip(SHAPES, (2.0, 8.0), strict=True)))
        out = tmp_path / ("out" if target == "peft" else "out.safetensors")
        report = convert(path, out, format=target)
        assert (report.verb, report.format, report.totals.error) == ("convert", target, 0.0)
        stored = load_file(out / "adapter_model.safetensors" if target == "peft" else out)
        factors = {array.tobytes() for array in stored.values() if array.ndim == 2}
        assert factors == {array.tobytes() for array in load_file(path).values() if array.ndim == 2}
        assert {layer.alpha for layer in open_adapter(out).layers} == {2.0, 8.0}
        assert len(updates) == len(report.layers)

    def test_a_scale_that_the_format_cannot_say_goes_into_b(self, write_peft, tmp_path, rng):
        B, A = pair(rng, 6, 4, 5)
        folder = write_peft({"proj.lora_A.weight": A, "proj.lora_B.weight": B}, r=4, lora_alpha=12)
        convert(folder, tmp_path / "out.safetensors", format="diffusers")
        stored = load_file(tmp_path / "out.safetensors")
        assert stored.keys() == {"transformer.proj.lora_A.weight", "transformer.proj.lora_B.weight"}
        assert np.array_equal(stored["transformer.proj.lora_A.weight"], A)
        assert np.array_equal(stored["transformer.proj.lora_B.weight"], np.float32(3) * B)

    @pytest.mark.parametrize("options", [{"alpha": 3.0}, {"rule": "rslora"}, {"dtype": "bfloat16"}, {"uniform": True}])
    def test_alpha_rule_and_dtype_change_and_the_update_does_not(self, write_peft, tmp_path, rng, options):
        B, A = pair(rng, 6, 4, 5)
        folder = write_peft({"proj.lora_A.weight": A, "proj.lora_B.weight": B}, r=4, lora_alpha=12)
        report = convert(folder, tmp_path / "out", **options)
        assert np.allclose(
            read(tmp_path / "out")["proj"], read(folder)["proj"], rtol=0.03 if "dtype" in options else 1e-6
        )
        assert report.layers[0].rank == 4
        assert report.config["use_rslora"] is (options.get("rule") == "rslora")

    def test_a_padded_and_a_zero_layer_keep_their_rank(self, write_peft, tmp_path):
        zero = {"a.lora_A.weight": np.ones((3, 5), "f4"), "a.lora_B.weight": np.zeros((4, 3), "f4")}
        wide = {"b.lora_A.weight": np.ones((9, 5), "f4"), "b.lora_B.weight": np.ones((4, 9), "f4")}
        folder = write_peft(zero | wide, r=3, lora_alpha=3, rank_pattern={"b": 9})
        convert(folder, tmp_path / "out.safetensors", format="kohya")
        assert {layer.name: layer.rank for layer in open_adapter(tmp_path / "out.safetensors").layers} == {
            "lora_unet_a": 3,
            "lora_unet_b": 9,
        }

    def test_what_the_target_lacks_is_named_and_the_exit_code_is_1(self, write_peft, tmp_path, rng):
        B, A = pair(rng, 6, 4, 5)
        embedding = {"e.lora_embedding_A": np.ones((2, 7), "f4"), "e.lora_embedding_B": np.ones((3, 2), "f4")}
        saved = {"head.weight": np.ones((2, 2), "f4")}
        folder = write_peft({"proj.lora_A.weight": A, "proj.lora_B.weight": B} | embedding | saved, r=4, lora_alpha=4)
        report = convert(folder, tmp_path / "out.safetensors", format="kohya")
        assert set(report.skipped) == {"e", "head.weight"}
        assert main(["convert", str(folder), str(tmp_path / "again.safetensors"), "--format", "kohya"]) == 1
        assert main(["convert", str(folder), str(tmp_path / "copy")]) == 0

    def test_formats_and_names_that_do_not_go_together(self, write_pairs, tmp_path):
        path, _ = write_pairs(PAIRS["diffusers"])
        with pytest.raises(ValueError, match=r"does not name an output of the format 'peft': PEFT's"):
            convert(path, tmp_path / "out.safetensors", format="peft")
        with pytest.raises(ValueError, match=r"'xlabs' cannot be written from this input: kohya, peft"):
            convert(path, tmp_path / "out.safetensors", format="xlabs")


def test_merge_finds_one_module_under_several_prefixes(write_pairs, tmp_path):
    first, updates = write_pairs(PAIRS["diffusers"], "transformer.")
    (tmp_path / "two").mkdir()
    second = tmp_path / "two" / "other.safetensors"
    save_file(
        {key.replace("transformer.", "diffusion_model."): value for key, value in load_file(first).items()}, second
    )
    merge([first, second], tmp_path / "sum.safetensors", weights=[1.0, 0.5])
    for name, update in read(tmp_path / "sum.safetensors").items():
        assert np.allclose(update, 1.5 * updates[name], rtol=0, atol=1e-5)


@st.composite
def mutilated(draw):
    """Draw names and shapes of tensors: layers in several namings, some dropped, some renamed, some of no format."""
    shapes = {}
    for number in range(draw(st.integers(1, 4))):
        down, up = draw(st.sampled_from(sorted(PAIRS.values())))
        prefix = draw(st.sampled_from(["", "transformer.", "lora_unet_", "text_encoder."]))
        shapes |= {f"{prefix}m{number}{down}": (2, 3), f"{prefix}m{number}{up}": (4, 2)}
        if draw(st.booleans()):
            shapes[f"{prefix}m{number}.alpha"] = ()
        for end, shape in ((".dora_scale", (4, 1)), (".diff_b", (4,)), (".lora_B.bias", (4,)), (".strange", (2, 2))):
            if draw(st.integers(0, 5)) == 0:
                shapes[f"{prefix}m{number}{end}"] = shape
    for key in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=2, unique=True)):
        shape = shapes.pop(key)
        if draw(st.booleans()):
            shapes[key + draw(st.sampled_from(["x", ".weight", ".0"]))] = shape
    return shapes or {"nothing": (1,)}


@given(mutilated(), st.integers(0, 2**32))
def test_no_tensor_is_passed_over_in_silence(tmp_path_factory, shapes, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("mutilated") / "lora.safetensors"
    save_file({key: rng.standard_normal(shape).astype("f4").reshape(shape) for key, shape in shapes.items()}, path)
    code = main(["inspect", str(path), "--ranks", "1"])
    try:
        adapter = open_adapter(path)
    except ValueError:
        assert code == 2
        return
    used = {
        key for layer in adapter.layers for key in (*layer.placement.keys, *(tensor.key for tensor in layer.tensors))
    }
    named = {other.tensor.key for other in adapter.others}
    failed = {key for key in shapes if any(name in key for name in adapter.unsupported)}
    assert shapes.keys() <= used | named | failed
    complete = not (named or adapter.unsupported)
    assert code == (0 if complete else 1)
    assert complete == (shapes.keys() <= used)
    assert set(inspect(path, ranks=[1]).not_low_rank) == {other.name for other in adapter.others}
