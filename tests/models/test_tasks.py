"""The task and the base that extract writes into PEFT's configuration, for AutoPeftModel… to find."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lowrank_core.models import extract
from tests.models.models_on_disk import checkpoint_pair


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "CAUSAL_LM"),
        ({"architectures": ["GPT2LMHeadModel"]}, "CAUSAL_LM"),
        ({"architectures": ["BertForSequenceClassification"]}, None),
        ({"architectures": ["BertForTokenClassification"]}, None),
        ({"architectures": ["BertForQuestionAnswering"]}, None),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "SEQ_2_SEQ_LM"),
        ({"architectures": ["Qwen2VLForConditionalGeneration"]}, None),
        ({"architectures": ["LlamaModel"]}, None),
        ({"architectures": None}, None),
        ({}, None),
    ],
)
def test_the_task_is_that_of_the_architecture_where_it_decides_it(tmp_path, rng, config, task):
    paths, _ = checkpoint_pair(tmp_path, rng)
    (tmp_path / "config.json").write_text(json.dumps(config))
    written = extract(*paths, tmp_path / "out", rank=2).config
    assert written["task_type"] == task
    assert written["base_model_name_or_path"] == str(tmp_path)


@pytest.mark.parametrize("named", [{}, {"architectures": None}, {"architectures": ["LlamaModel"]}])
def test_the_architecture_of_a_model_in_memory_is_its_class_where_its_configuration_names_none(rng, named):
    class LlamaForCausalLM:
        config = SimpleNamespace(to_dict=lambda: named)

        def __init__(self, size):
            self.state = {"q.weight": np.full((4, 6), size, np.float32)}

        def state_dict(self):
            return self.state

    written = extract(LlamaForCausalLM(1.0), LlamaForCausalLM(2.0), rank=1).config
    assert written["task_type"] == (None if named.get("architectures") else "CAUSAL_LM")
