import numpy as np
import pytest

from lowrank_core.models.formats import open_adapter
from lowrank_core.models.formats.headers import Header, check_headers, described_adapter, headers_of, kohya_dimensions
from lowrank_core.models.formats.peft_configuration import peft_config
from lowrank_core.models.formats.placements import Placement, kohya_placement, peft_placement
from lowrank_core.models.operations.factoring import Form, factor


@pytest.fixture
def kept(rng):
    def make(form, ranks, place=peft_placement):
        update = rng.standard_normal((9, 8))
        return {place(name, (8,)): factor(update, rank, form) for name, rank in ranks.items()}

    return make


def by_name(headers):
    return {placement.name: tuple(header) for placement, header in headers.items()}


def test_each_layer_has_its_own_rank(kept):
    form = Form(alpha=6.0)
    assert by_name(headers_of(kept(form, {"a": 1, "b": 3}), form)) == {"a": (1, 6.0, 6.0), "b": (3, 6.0, 2.0)}
    form = Form(alpha=6.0, rule="rslora")
    assert by_name(headers_of(kept(form, {"a": 4}), form)) == {"a": (4, 6.0, 3.0)}


def test_uniform_takes_the_largest_rank(kept):
    form = Form(uniform=True)
    assert by_name(headers_of(kept(form, {"a": 1, "b": 3}), form)) == {"a": (3, 3.0, 1.0), "b": (3, 3.0, 1.0)}


def test_a_uniform_rank_that_a_stored_alpha_can_equal(rng):
    # bfloat16 has 256 and 258, and nothing between them.
    form = Form("bfloat16", uniform=True, kohya=True)
    update = rng.standard_normal((300, 300))
    headers = headers_of({kohya_placement("a", (300,), "a"): factor(update, 257, form)}, form)
    assert by_name(headers) == {"a": (258, 258.0, 1.0)}


@pytest.mark.parametrize("rule", ["standard", "rslora"])
def test_layers_that_a_configuration_cannot_tell_apart(kept, rule):
    unit = Form(uniform=True)
    places = {name: Placement(name, "mha", f"{name}.A", f"{name}.B", None, (8,)) for name in ("in", "out")}
    layers = kept(unit, {"in": 1, "out": 4}, place=lambda name, _: places[name])
    headers = headers_of(layers, Form(rule=rule))
    alpha = 4.0 if rule == "standard" else 2.0
    assert by_name(headers) == {"in": (4, alpha, 1.0), "out": (4, alpha, 1.0)}


def test_kohyas_metadata():
    one, other = Header(4, 8.0, 2.0), Header(2, 8.0, 4.0)
    assert kohya_dimensions([one, one])["ss_network_dim"] == "4"
    assert kohya_dimensions([one, other]) == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "8",
    }


def test_an_adapter_that_is_not_written_warns_as_one_that_is(write_peft, tmp_path):
    tensors = {}
    for name, rank in (("a", 2), ("b", 3)):
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = np.ones((rank, 4)), np.ones((5, rank))
    config = peft_config({"a": 2, "b": 3}, {"a": 4.0, "b": 7.0}, use_rslora=True)
    read = open_adapter(write_peft(tensors, **config))
    headers = {
        peft_placement(layer.name, (4,)): Header(layer.rank, layer.alpha, layer.scaling) for layer in read.layers
    }
    described = described_adapter(tmp_path / "nowhere", headers, config, "float64")
    assert described.warnings == read.warnings
    assert len(read.warnings) == 3
    for adapter in (read, described):
        check_headers(adapter, headers)


@pytest.mark.parametrize("wrong", [Header(2, 4.0, 2.1), Header(3, 4.0, 2.0)])
def test_a_file_that_reads_otherwise_is_refused(write_peft, wrong):
    tensors = {"a.lora_A.weight": np.ones((2, 4)), "a.lora_B.weight": np.ones((5, 2))}
    adapter = open_adapter(write_peft(tensors, **peft_config({"a": 2}, {"a": 4.0})))
    check_headers(adapter, {peft_placement("a", (4,)): Header(2, 4.0, 2.0)})
    with pytest.raises(ValueError, match=r"'a' would be read with rank 2 and scale 2\.0, but was made for rank"):
        check_headers(adapter, {peft_placement("a", (4,)): wrong})
    with pytest.raises(ValueError, match="'b' would be read with rank 0"):
        check_headers(adapter, {peft_placement("b", (4,)): Header(2, 4.0, 2.0)})
