"""The callback inside transformers' Trainer writes what the checkpoints of the same run say."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lowrank_core.models import history, history_callback

# Of transformers and of torch, as PEFT and the Trainer call them.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny GPT-2 with checkpoints and a log every two steps, and the rows of the callback."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=16, bos_token_id=0, eos_token_id=0)
    )
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True))
    tokens = torch.randint(64, (16, 16))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        folder / "out",
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=2,
        save_steps=2,
        report_to=[],
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = history_callback(folder / "rows.jsonl")
    Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    return folder


def test_it_writes_what_the_checkpoints_say(trained):
    rows = [json.loads(line) for line in (trained / "rows.jsonl").read_text().splitlines()]
    report = history([trained / "out"])
    assert [row["step"] for row in rows] == [2, 2, 4, 4, 6, 6]
    by_step = {(row.step, row.name): row for row in report.rows}
    assert len(by_step) == len(rows) == 6
    for row in rows:
        exact = by_step[row["step"], row["name"]]
        for figure in ("norm", "largest_value", "leading_variance", "effective_rank"):
            assert row[figure] == pytest.approx(getattr(exact, figure), rel=1e-5), figure
        # Conv1D stores weights transposed: what checkpoints call columns is the module's output here too.
        angles = sorted(np.nan_to_num([exact.column_angle, exact.row_angle]))
        assert sorted(row[side] or 0.0 for side in ("column_angle", "row_angle")) == pytest.approx(angles, abs=1e-2)
    assert rows[0]["column_angle"] is None
    assert rows[-1]["norm"] > rows[0]["norm"] > 0
