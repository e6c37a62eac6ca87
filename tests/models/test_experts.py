"""Experts whose factors PEFT stacks in two tensors (target_parameters): a layer for each, and stacked again."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank_core.models import Budget, extract, merge, open_adapter, plan, resize
from lowrank_core.models.files import tensors as tensor_files

EXPERTS, RANK = 3, 2
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def stack(rng, module, inputs, outputs, rank=RANK, experts=EXPERTS):
    return {
        f"{module}.lora_A.weight": rng.standard_normal((experts * rank, inputs)),
        f"{module}.lora_B.weight": rng.standard_normal((outputs, rank * experts)),
    }


def expert(tensors, module, index, experts=EXPERTS):
    """BA of one expert by PEFT's own formula: einsum("o r e, e r i -> e o i")."""
    A, B = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
    A, B = A.reshape(experts, -1, A.shape[1]), B.reshape(len(B), -1, experts)
    return np.einsum("ore,eri->eoi", B, A)[index]


@pytest.fixture
def two_parameters(rng):
    """Factors of two parameters of one module: the first that the model defines is the innermost."""
    return stack(rng, "l.mlp.experts.base_layer", 6, 10) | stack(rng, "l.mlp.experts", 5, 6)


def updates(path):
    return {layer.name: layer.update().to_dense() for layer in open_adapter(path).layers}


@pytest.mark.parametrize("targets", [[DOWN, GATE_UP], ["gate_up_proj", "down_proj"], [f"l.{GATE_UP}", "down_proj"]])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_each_expert_is_a_layer_with_its_own_factors(write_peft, two_parameters, targets, use_rslora):
    path = write_peft(
        two_parameters, target_parameters=targets, target_modules=[], use_rslora=use_rslora, peft_version="0.21.2"
    )
    scaling = 8 / np.sqrt(RANK) if use_rslora else 8 / RANK
    found = updates(path)
    assert len(found) == 2 * EXPERTS
    for index in range(EXPERTS):
        for parameter, module in (("gate_up_proj", "l.mlp.experts.base_layer"), ("down_proj", "l.mlp.experts")):
            expected = scaling * expert(two_parameters, module, index)
            assert np.allclose(found[f"l.mlp.experts.{parameter}[{index}]"], expected, rtol=1e-12)


def test_patterns_match_the_full_name_of_a_parameter(write_peft, rng):
    tensors = stack(rng, "l.mlp.experts", 6, 10, rank=4)
    path = write_peft(
        tensors, target_parameters=[GATE_UP], rank_pattern={"experts.gate_up_proj": 4}, alpha_pattern={"experts": 99}
    )
    layers = open_adapter(path).layers
    assert [(layer.rank, layer.scaling) for layer in layers] == [(4, 2.0)] * EXPERTS


def test_a_module_of_target_modules_is_no_stack_of_a_bare_name(write_peft, rng):
    tensors = stack(rng, "l.mlp.experts", 6, 10) | stack(rng, "l.q_proj", 6, 6, experts=1)
    for targets in (["q_proj"], ".*q_proj"):
        path = write_peft(tensors, str(len(targets)), target_parameters=["gate_up_proj"], target_modules=targets)
        names = [layer.name for layer in open_adapter(path).layers]
        assert sorted(names) == [*(f"l.mlp.experts.gate_up_proj[{index}]" for index in range(EXPERTS)), "l.q_proj"]


def test_a_parameter_without_experts_is_one_layer(write_peft, rng, tmp_path):
    path = write_peft(stack(rng, "l.router", 6, 4, experts=1), target_parameters=["router.weight"], target_modules=[])
    assert [layer.name for layer in open_adapter(path).layers] == ["l.router"]
    resize(path, tmp_path / "new", rank=1)
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["target_parameters"]) == ([], ["l.router.weight"])


@pytest.mark.parametrize(
    ("version", "transposed"), [("0.18.1", True), ("0.19.0", True), ("0.19.1", False), (None, True)]
)
def test_before_0_19_1_all_experts_are_taken_as_stored_transposed(write_peft, rng, version, transposed):
    tensors = stack(rng, "l.mlp.experts", 6, 10)
    adapter = open_adapter(write_peft(tensors, target_parameters=[GATE_UP], peft_version=version))
    assert {layer.shape for layer in adapter.layers} == {(6, 10) if transposed else (10, 6)}
    assert any("before 0.19.1" in warning for warning in adapter.warnings) == transposed
    oss = write_peft(tensors, "oss", target_parameters=[GATE_UP], base_model_name_or_path="openai/gpt-oss-20b")
    assert {layer.shape for layer in open_adapter(oss).layers} == {(6, 10)}


@pytest.mark.parametrize(
    ("base", "transposed"),
    [
        ({"base_model_name_or_path": "openai/gpt-oss-20b"}, True),
        ({"base_model_name_or_path": "some/mixtral"}, False),
        ({"auto_mapping": {"parent_library": "transformers.models.gpt_oss.modeling_gpt_oss"}}, True),
        ({"auto_mapping": {"parent_library": "transformers.models.mixtral.modeling_mixtral"}}, False),
    ],
)
def test_since_0_19_1_experts_are_stored_transposed_where_the_base_has_them_so(write_peft, rng, base, transposed):
    tensors = stack(rng, "l.mlp.experts", 6, 10)
    layers = open_adapter(write_peft(tensors, target_parameters=[GATE_UP], peft_version="0.21.2", **base)).layers
    assert {layer.shape for layer in layers} == {(6, 10) if transposed else (10, 6)}


@pytest.mark.parametrize(("name", "known"), [("router.weight", True), ("router.table", False)])
def test_the_order_of_parameters_is_doubtful_where_a_name_is_not_known(write_peft, two_parameters, rng, name, known):
    tensors = two_parameters | stack(rng, "l.router", 6, 4, experts=1)
    path = write_peft(tensors, target_parameters=[DOWN, GATE_UP, name], target_modules=[], peft_version="0.21.2")
    assert any("alphabetical order" in warning for warning in open_adapter(path).warnings) != known


def test_rows_that_are_no_multiple_of_the_rank_are_that_parameters_failure(write_peft, two_parameters):
    path = write_peft(
        two_parameters,
        target_parameters=[DOWN, GATE_UP],
        rank_pattern={"experts.gate_up_proj": 5},
        peft_version="0.21.2",
    )
    adapter = open_adapter(path)
    assert len(adapter.layers) == EXPERTS
    assert "one multiple of 5" in adapter.unsupported["l.mlp.experts.gate_up_proj"]


def test_as_many_parameters_as_levels_are_needed(write_peft, two_parameters):
    adapter = open_adapter(
        write_peft(two_parameters | stack(np.random.default_rng(0), "q", 4, 4, experts=1), target_parameters=[DOWN])
    )
    assert [layer.name for layer in adapter.layers] == ["q"]
    assert all("another number" in reason for reason in adapter.unsupported.values())


@pytest.mark.parametrize("options", [{"rank": 1}, {}, {"uniform": True}, {"rank": 1, "dtype": "bfloat16"}])
def test_resize_stacks_them_again(write_peft, two_parameters, rng, tmp_path, options):
    tensors = two_parameters | stack(rng, "l.q_proj", 6, 7, rank=4, experts=1)
    path = write_peft(
        tensors,
        target_parameters=[DOWN, GATE_UP],
        rank_pattern={"q_proj": 4},
        target_modules=["q_proj"],
        peft_version="0.21.2",
    )
    report = resize(path, tmp_path / "new", **options)
    assert not report.failures
    before, after = updates(path), updates(tmp_path / "new")
    assert load_file(tmp_path / "new" / "adapter_model.safetensors").keys() == {
        f"base_model.model.{key}" for key in tensors
    }
    tolerance = 2e-2 if "dtype" in options else 1e-12
    for name, update in before.items():
        U, values, Vt = np.linalg.svd(update)
        rank = options.get("rank", len(values))
        best = (U[:, :rank] * values[:rank]) @ Vt[:rank]
        assert np.abs(after[name] - best).max() <= tolerance * values[0]


def test_experts_of_different_ranks_are_padded_to_one(write_peft, two_parameters, tmp_path):
    path = write_peft(two_parameters, target_parameters=[DOWN, GATE_UP], peft_version="0.21.2")
    before = updates(path)
    ranks = {name: 1 if name.endswith("[0]") else 2 for name in before}
    report = resize(path, tmp_path / "new", rank=ranks)
    assert {layer.name: layer.rank for layer in report.layers} == ranks
    after = updates(tmp_path / "new")
    for name, update in before.items():
        values = np.linalg.svd(update, compute_uv=False)
        assert np.linalg.norm(after[name] - update) == pytest.approx(
            np.sqrt(np.sum(values[ranks[name] :] ** 2)), abs=1e-12
        )


def test_an_expert_that_cannot_be_read_is_one_failure(write_peft, two_parameters, tmp_path):
    two_parameters["l.mlp.experts.lora_A.weight"][RANK] = np.nan
    path = write_peft(two_parameters, target_parameters=[DOWN, GATE_UP], peft_version="0.21.2")
    report = resize(path, tmp_path / "new", rank=1)
    assert list(report.failures) == ["l.mlp.experts.down_proj[1]"]
    written = updates(tmp_path / "new")
    assert not written["l.mlp.experts.down_proj[1]"].any()
    assert written["l.mlp.experts.down_proj[0]"].any()


def test_merge_adds_experts(write_peft, two_parameters, rng, tmp_path):
    other = stack(rng, "l.mlp.experts.base_layer", 6, 10, rank=1) | stack(rng, "l.mlp.experts", 5, 6, rank=1)
    settings = {"target_parameters": [DOWN, GATE_UP], "peft_version": "0.21.2"}
    paths = [write_peft(two_parameters, **settings), write_peft(other, "other", r=1, **settings)]
    assert not merge(paths, tmp_path / "sum", weights=[1.0, -0.5]).failures
    first, second, total = (updates(path) for path in (*paths, tmp_path / "sum"))
    assert total.keys() == first.keys()
    for name, update in total.items():
        assert np.allclose(update, first[name] - 0.5 * second[name], atol=1e-10)


def test_a_format_without_experts_names_them(write_peft, two_parameters, rng, tmp_path):
    path = write_peft(two_parameters | stack(rng, "q", 4, 4, experts=1), target_parameters=[DOWN, GATE_UP])
    report = resize(path, tmp_path / "new.safetensors")
    assert len(report.failures) == 2 * EXPERTS
    assert all("experts that are stacked in one tensor" in reason for reason in report.failures.values())


@pytest.mark.parametrize("experts", [4, 32])
def test_each_expert_reads_no_more_than_its_own_entries(write_peft, rng, monkeypatch, experts):
    path = write_peft(stack(rng, "l.mlp.experts", 6, 10, experts=experts), target_parameters=[GATE_UP])
    read = []
    stored_blocks = tensor_files._stored_blocks

    def recorded(tensor, blocks):
        for block in stored_blocks(tensor, blocks):
            read.append(block)
            yield block

    monkeypatch.setattr(tensor_files, "_stored_blocks", recorded)
    monkeypatch.setattr(tensor_files, "CONTAINERS", ())  # whole tensors would be read through one
    layers = open_adapter(path).layers
    for layer in layers:
        layer.update()
    assert len(layers) == experts
    assert sum(array.size for array in read) == experts * RANK * (6 + 10)


def test_a_plan_has_one_rank_for_all_experts_of_a_parameter(write_peft, two_parameters, rng):
    two_parameters["l.mlp.experts.lora_A.weight"][:RANK] *= 1e-6  # the first expert needs nothing
    tensors = two_parameters | stack(rng, "l.q_proj", 6, 7, experts=1)
    path = write_peft(tensors, target_parameters=[DOWN, GATE_UP], target_modules=["q_proj"], peft_version="0.21.2")
    planned = plan(path, budget=Budget(variance=0.999))
    config = planned.config
    assert (config["target_modules"], config["target_parameters"]) == (["l.q_proj"], [f"l.{DOWN}", f"l.{GATE_UP}"])
    assert "[" not in "".join(config["rank_pattern"])
    largest = max(layer.rank for layer in planned.layers if "down_proj" in layer.name)
    assert config["rank_pattern"].get(r"^l\.mlp\.experts\.down_proj", config["r"]) == largest


def test_a_router_is_told_by_the_experts_beside_it_and_not_by_its_rows(rng, tmp_path):
    names = ["mlp.experts.gate_up_proj", "mlp.router.weight", "self_attn.k_proj.weight"]
    base = {f"model.layers.0.{name}": rng.standard_normal((EXPERTS, 6)) for name in names}
    base[f"model.layers.0.{names[0]}"] = rng.standard_normal((EXPERTS, 6, 10))
    tuned = {key: weight + rng.standard_normal(weight.shape) for key, weight in base.items()}
    extract(base, tuned, tmp_path / "out", rank=1)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_parameters"] == [f"model.layers.0.{name}" for name in names[:2]]
    assert config["target_modules"] == ["model.layers.0.self_attn.k_proj"]
    failures = extract(base, tuned, tmp_path / "x.safetensors", rank=1).failures
    reason = (
        f"one of {EXPERTS} experts that are stacked in one tensor, which kohya's format does not have: write PEFT's, a "
        "folder"
    )
    assert failures == {f"model.layers.0.{names[0]}[{expert}]": reason for expert in range(EXPERTS)}
