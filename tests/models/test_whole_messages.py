"""Messages of what people do by mistake, whole: what was given, what is wrong with it, what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core.models import (
    AboveNoise,
    Budget,
    apply,
    census,
    compare,
    convert,
    inspect,
    open_adapter,
    open_checkpoint,
    plan,
    resize,
)

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def factors(name):
    return {f"{name}.lora_A.weight": np.ones((2, 4), np.float32), f"{name}.lora_B.weight": np.ones((4, 2), np.float32)}


def opened(**settings):
    return open_adapter(factors("a"), config=CONFIG | settings)


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


SCALE = "1 applies the factors' product as it is."


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda: resize(opened(), rank=Budget(megabytes=1.0, parameters=3)),
            (
                "a budget has one of parameters, variance and a positive number of megabytes; got Budget(parameters=3, "
                "variance=None, max_rank=None, objective='relative', megabytes=1.0)"
            ),
        ),
        (lambda: AboveNoise(3), "one side was rounded, the tuned one, or two, both of them; got 3"),
        (
            lambda: resize(opened(), rank=[4, 0]),
            "several ranks are whole numbers of at least 1, as [4, 8, 16]; got [4, 0]",
        ),
        (
            lambda: resize(opened(), rank=1, dtype="int8"),
            "unsupported dtype 'int8': float64, float32, float16, bfloat16 are written",
        ),
        (
            lambda: resize(opened(), rank=1, rule="cubic"),
            "unsupported rule 'cubic': an adapter can name rslora, standard (α/√r and α/r)",
        ),
        (lambda: plan(opened(), scale=0.0, parameters=9), f"scale must be finite and positive; got 0.0. {SCALE}"),
        (lambda: plan(opened(), scale=np.inf, parameters=9), f"scale must be finite and positive; got inf. {SCALE}"),
        (
            lambda: convert(opened(init_lora_weights="pissa")),
            (
                "'state_dict' was initialised by 'pissa', which altered the base model: its factors are added to that "
                "altered base, and are not an update of the original one. Convert it with PEFT's save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...); or, if the base was restored and the factors "
                "converted, say so (--base-restored of resize, convert, merge, apply and verify)"
            ),
        ),
        (
            lambda: open_adapter({"a.vera_lambda_b": np.ones(4, np.float32)}, config={"peft_type": "VERA", "r": 2}),
            (
                "no layer of 'state_dict' can be read; the first of 1, a: 'a' has vera_lambda_b alone: the file is "
                "incomplete, save the adapter again"
            ),
        ),
    ],
)
def test_a_wrong_value_is_explained(mistake, message):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the whole message is compared
        mistake()
    assert str(refused.value) == message
