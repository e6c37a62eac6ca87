"""What the history callback costs of a training step that is logged: ``python -m benchmarks.callback``.

Processor time of the callback over that of the step, within one run of transformers' Trainer. The last rows are checked
against the model's factors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RANK, WARM_UP = 16, 3


class Setting(NamedTuple):
    """A GPT-2 of so many layers and hidden units, and the texts of a step."""

    layers: int
    hidden: int
    batch: int
    tokens: int
    steps: int


SETTINGS = (
    Setting(2, 32, 4, 16, 30),
    Setting(16, 32, 4, 16, 15),
    Setting(8, 256, 4, 64, 10),
    Setting(12, 512, 4, 128, 6),
)


class Clock:
    """Processor time from one call of a method to another, and how much of it the method took."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.calls = first, last, 0
        self.inside = self.start = self.end = 0.0

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method whose calls are counted and timed."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            result = method(*arguments, **named)
            end = time.process_time()
            self.calls += 1
            if self.calls == self.first:
                self.start = end
            elif self.first < self.calls <= self.last:
                self.end = end
                self.inside += end - start
            return result

        return call


def measure(setting: Setting) -> tuple[float, float]:
    """Return the processor seconds of a step without the callback, and of the callback."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

    from lowrank_core.models import history_callback

    # Others that wait for work, as they do for some milliseconds after each operation, would count for the callback.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=setting.layers,
        n_embd=setting.hidden,
        n_head=4,
        vocab_size=1024,
        n_positions=setting.tokens,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = get_peft_model(
        GPT2LMHeadModel(config), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    tokens = torch.randint(1024, (setting.batch * 4, setting.tokens))
    with tempfile.TemporaryDirectory() as folder:
        rows, clock = Path(folder, "rows.jsonl"), Clock(WARM_UP, setting.steps)
        callback = history_callback(rows)
        callback.on_log = clock.timed(callback.on_log)
        arguments = TrainingArguments(
            folder,
            max_steps=setting.steps,
            per_device_train_batch_size=setting.batch,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            learning_rate=1e-3,
            use_cpu=True,
            disable_tqdm=True,
        )
        data = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        _check(rows, model)
    steps = setting.steps - WARM_UP
    return (clock.end - clock.start - clock.inside) / steps, clock.inside / steps


def _check(rows: Path, model: Any) -> None:
    """Check the norms of the last step against the product of the factors in NumPy."""
    last = {row["name"]: row["norm"] for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines())}
    for name, norm in last.items():
        module = model.get_submodule(f"base_model.model.{name}")
        B, A = (part["default"].weight.detach().double().numpy() for part in (module.lora_B, module.lora_A))
        exact = module.scaling["default"] * np.linalg.norm(B @ A)
        if not abs(norm - exact) <= 1e-6 * exact:
            raise RuntimeError(f"{name}: the norm {norm} is not {exact}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callback", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each model, of which the best counts (3)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    for setting in SETTINGS:
        step, inside = (min(times) for times in zip(*(measure(setting) for _ in range(options.rounds)), strict=True))
        print(
            f"{setting.layers} layers of {setting.hidden}, {setting.batch} × {setting.tokens} tokens: "
            f"step {1e3 * step:.1f} ms, callback {1e3 * inside:.2f} ms of processor time, {inside / step:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
