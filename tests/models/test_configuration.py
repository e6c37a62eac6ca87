import json
import re

import pytest

from lowrank_core.models.formats.peft_config import PeftConfig, check_peft_config, lora_config

NAMES = ["layers.1.q_proj", "layers.11.q_proj", "layers.1.q_proj.inner", "q_proj", "a+b.(c)"]


def pattern_key(patterns, name):
    """Return what ``peft.utils.other.get_pattern_key`` returns."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), name)


def resolved(config, name):
    """Rank and alpha as PEFT looks them up."""
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    return (
        ranks.get(pattern_key(ranks, name), config["r"]),
        alphas.get(pattern_key(alphas, name), config["lora_alpha"]),
    )


def test_every_layer_gets_its_own_rank_and_alpha():
    ranks = {name: 1 + i for i, name in enumerate(NAMES)}
    alphas = {name: 0.5 * i + 1 for i, name in enumerate(NAMES)}
    config = lora_config(ranks, alphas)
    for name in NAMES:
        assert resolved(config, name) == (ranks[name], alphas[name])


def test_a_pattern_matches_one_layer_alone():
    config = lora_config({name: 9 if name == NAMES[0] else 2 for name in NAMES}, dict.fromkeys(NAMES, 1.0))
    assert config["rank_pattern"] == {"^" + re.escape(NAMES[0]): 9}
    for other in ("layers.11.q_proj", "layersX1.q_proj", "model.layers.1.q_proj", "layers.1.q_proj.inner"):
        assert resolved(config, other)[0] == 2


def test_the_commonest_values_need_no_pattern():
    config = lora_config({"a": 4, "b": 4, "c": 8}, {"a": 16.0, "b": 8.0, "c": 8.0})
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({"^c": 8}, {"^a": 16})
    assert isinstance(config["lora_alpha"], int)
    assert lora_config({"a": 4}, {"a": 2.5})["lora_alpha"] == 2.5


def test_a_list_of_targets_where_no_name_is_the_end_of_another():
    config = lora_config({"a.q": 2, "a.k": 2}, {"a.q": 1, "a.k": 1}, others=["b.v"])
    assert config["target_modules"] == ["a.k", "a.q"]


@pytest.mark.parametrize("other", ["block.proj", "deep.block.proj"])
def test_one_expression_where_a_name_is_the_end_of_another(other):
    targets = lora_config({"proj": 2}, {"proj": 1}, others=[other, "proj"])["target_modules"]
    assert isinstance(targets, str)
    assert re.fullmatch(targets, "proj")
    assert not re.fullmatch(targets, other)


def test_settings_are_kept_unless_they_describe_layers_or_factors():
    settings = {
        "task_type": "CAUSAL_LM",
        "modules_to_save": ["head"],
        "use_dora": True,
        "r": 99,
        "rank_pattern": {"x": 1},
        "use_rslora": True,
        "init_lora_weights": "pissa",
        "layers_to_transform": [1],
        "exclude_modules": "q",
        "inference_mode": False,
    }
    config = lora_config({"a": 4}, {"a": 8.0}, settings=settings)
    assert {key: config[key] for key in ("task_type", "modules_to_save", "use_dora")} == {
        key: settings[key] for key in ("task_type", "modules_to_save", "use_dora")
    }
    assert (config["r"], config["rank_pattern"], config["use_rslora"], config["inference_mode"]) == (4, {}, False, True)
    assert (config["init_lora_weights"], config["layers_to_transform"], config["exclude_modules"]) == (True, None, None)


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(lora_config({"a": 4, "b": 2}, {"a": 8.0, "b": 1.5}, use_rslora=True)))
    config = check_peft_config(path, json.loads(path.read_text()))
    assert isinstance(config, PeftConfig)
    assert [(config.rank_of(name), config.alpha_of(name)[0]) for name in "ab"] == [(4, 8.0), (2, 1.5)]
    assert config.rule == "rslora"
