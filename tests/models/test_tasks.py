"""The task and the base that extract writes into PEFT's configuration, for AutoPeftModel… to find."""

import json

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
