"""Write a small model before and after fine-tuning, and an adapter of it, to try the command line on.

    python docs/examples/tiny_model.py FOLDER [--dtype bfloat16]

makes FOLDER/base and FOLDER/tuned (safetensors checkpoints) and FOLDER/adapter (a PEFT adapter). Two blocks, four
weights each. By construction fine-tuning changed the attention weights in few directions and the MLP weights in many,
so that the right answers are known.
"""

import argparse
import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lowrank_core import truncate, update_with_spectrum

SHAPES = {"attn.q_proj": (64, 64), "attn.v_proj": (64, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}
# Attention: a few directions, more in the second block, and the rest small. MLP: falling slowly over all 64 directions.
SPECTRA = {
    ("attn", 0): np.concatenate([[2.0, 1.2, 0.6], np.full(61, 0.01)]),
    ("attn", 1): np.concatenate([[1.5, 1.2, 1.0, 0.8, 0.5, 0.3], np.full(58, 0.01)]),
    ("mlp", 0): np.linspace(1.0, 0.1, 64),
    ("mlp", 1): np.geomspace(2.0, 0.05, 64),
}
ADAPTER_RANK, ALPHA = 8, 16


def main(folder, dtype=np.float32, prefix=""):
    """Write both checkpoints, in this dtype and with this prefix to their names, and the adapter."""
    rng = np.random.default_rng(0)
    base, tuned, factors = {}, {}, {}
    for block in range(2):
        for module, shape in SHAPES.items():
            name = f"model.layers.{block}.{module}"
            weight = rng.standard_normal(shape).astype(dtype)
            update = update_with_spectrum(SPECTRA[module.partition(".")[0], block], shape, rng=rng)
            base[f"{prefix}{name}.weight"] = weight
            tuned[f"{prefix}{name}.weight"] = (weight.astype(np.float64) + update).astype(dtype)
            # An adapter's own scale is α/√r here, so the factors are those of the update divided by it.
            best = truncate(update, ADAPTER_RANK).balanced()
            scale = np.sqrt(ALPHA / np.sqrt(ADAPTER_RANK))
            factors[f"base_model.model.{name}.lora_B.weight"] = (best.B / scale).astype(np.float32)
            factors[f"base_model.model.{name}.lora_A.weight"] = (best.A / scale).astype(np.float32)
    for name, tensors in (("base", base), ("tuned", tuned)):
        write(folder / name / "model.safetensors", tensors)
    write(folder / "adapter" / "adapter_model.safetensors", factors)
    config = {"peft_type": "LORA", "r": ADAPTER_RANK, "lora_alpha": ALPHA, "use_rslora": True}
    config["target_modules"] = list(SHAPES)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def write(path, tensors):
    """Write a safetensors file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors writes memory as it is: an array that is not C-contiguous would be written in the wrong order.
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, {"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--prefix", default="")
    arguments = parser.parse_args()
    main(arguments.folder, np.dtype(getattr(ml_dtypes, arguments.dtype, arguments.dtype)), arguments.prefix)
