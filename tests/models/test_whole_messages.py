"""Messages of what people do by mistake, whole: what was given, what is wrong with it, what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import apply, census, compare, inspect, open_adapter, open_checkpoint

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def factors(name):
    return {f"{name}.lora_A.weight": np.ones((2, 4), np.float32), f"{name}.lora_B.weight": np.ones((4, 2), np.float32)}


def two_models(_):
    compare([open_adapter(factors(name), config=CONFIG) for name in "ab"])


def intruders_of_no_base(_):
    inspect(open_adapter(factors("a"), config=CONFIG), intruders=3)


def census_of_nothing(folder):
    census(folder / "no")


def half_a_product(_):
    tensors = factors("a")
    del tensors["a.lora_B.weight"]
    open_adapter(tensors, config=CONFIG)


def over_the_base(folder):
    save_file({"a.weight": np.ones((4, 4), np.float32)}, folder / "base.safetensors")
    apply(
        folder / "base.safetensors", open_adapter(factors("a"), config=CONFIG), folder / "base.safetensors", force=True
    )


def lost_shard(folder):
    index = json.dumps({"weight_map": {"a": "x.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    open_checkpoint(folder)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            two_models,
            (
                "'state_dict' and 'state_dict (2)' have no layer in common: the first has 'a', the second 'b'. They "
                "are of different models, or change different modules"
            ),
        ),
        (intruders_of_no_base, "intruders are beside the base's weights: give the base too (--base)"),
        (census_of_nothing, "'FOLDER/no' is not a folder: a census is taken of the adapters under one"),
        (
            half_a_product,
            (
                "no layer of 'state_dict' can be read; the first of 1, a: 'a' has lora_A but no lora_B: half of a "
                "product is not an update; the file is incomplete, save the adapter again"
            ),
        ),
        (
            over_the_base,
            "'FOLDER/base.safetensors' is the base, or its folder: a model is never written over its own input",
        ),
        (
            lost_shard,
            (
                "'FOLDER/model.safetensors.index.json' names the shard 'x.safetensors', which is not beside it: the "
                "download is incomplete"
            ),
        ),
    ],
)
def test_a_mistake_is_explained(tmp_path, mistake, message):
    with pytest.raises((ValueError, OSError)) as refused:
        mistake(tmp_path)
    assert str(refused.value).replace(str(tmp_path), "FOLDER") == message
