"""Write the lists of adapter formats as Markdown: what is read and written, and conversions there and back.

python docs/_generate/formats.py FOLDER
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tables import table

from lowrank_core.models import convert, open_adapter
from lowrank_core.models.formats import FORMATS
from lowrank_core.models.norms import residual_norm, update_norm

# Of each kind of layer one: linear, and convolution.
SHAPES = {"blocks.0.attn.to_q": ((24, 4), (4, 16)), "blocks.1.conv": ((12, 3, 1, 1), (3, 8, 3, 3))}
EMBEDDING = "embed_tokens"
KINDS = {"embeddings": EMBEDDING, "convolutions": "conv"}


def write_all(folder):
    """Write every table into a folder."""
    Path(folder, "formats.md").write_text(listed(), encoding="utf-8")
    Path(folder, "conversions.md").write_text(conversions(), encoding="utf-8")


def listed():
    """Return the list of formats: who writes each, what it looks like, and the scale that its readers apply."""
    return "\n".join(section(each) for each in FORMATS if each.documented)


def section(each):
    """Return what there is to say of one format."""
    about = each.documented
    written = f"written for any layers, as {each.output.removeprefix(each.title).strip(' ()')}"
    return f"""### {each.title}

`{each.name}`, {written if each.place else "written for layers that were read from it"}.

Written by
: {about.writers}.

Layout
: {about.layout}.

Scale of a layer
: {about.scale} ({about.source}).
"""


def conversions():
    """Return what is left of an adapter after a conversion to each format and back, and what each cannot hold."""
    writable = [each for each in FORMATS if each.place and each.documented]
    rows = []
    for first in writable:
        cells = []
        for second in writable:
            with tempfile.TemporaryDirectory() as folder:
                cells.append("–" if first is second else there_and_back(Path(folder), first, second))
        rows.append([f"`{first.name}`", *cells])
    return table(("from \\ to", *(f"`{each.name}`" for each in writable)), rows)


def there_and_back(folder, first, second):
    """Return the largest relative change of a layer's update, and what the second format cannot hold."""
    write_peft(folder / "peft")
    save_file(
        {f"{name}.weight": np.zeros(shape, "f4") for name, shape in weight_shapes().items()},
        folder / "base.safetensors",
    )
    base = folder / "base.safetensors"
    start, middle, end = (
        folder / f"{step}{'' if each.files else each.suffix}" for step, each in enumerate((first, second, first))
    )
    reports = [
        convert(folder / "peft", start, format=first.name, base=base),
        convert(start, middle, format=second.name, base=base),
        convert(middle, end, format=first.name, base=base),
    ]
    lost = {name for report in reports[1:] for name in (*report.skipped, *report.failures)}
    before, after = ({layer.name: layer for layer in open_adapter(path).layers} for path in (start, end))
    changes = []
    for name, layer in before.items():
        if name in after:
            update = layer.untransposed_update()
            changes.append(residual_norm(update, after[name].untransposed_update()) / update_norm(update))
    text = f"{max(changes):.1e}" if max(changes) else "0"
    kinds = [kind for kind, module in KINDS.items() if any(name.replace(".", "_").endswith(module) for name in lost)]
    return f"{text}; without {' and '.join(kinds)}" if kinds else text


def weight_shapes():
    """Return the shapes of the base's weights."""
    shapes = {name: (B[0], *A[1:]) for name, (B, A) in SHAPES.items()}
    return shapes | {EMBEDDING: (40, 8)}


def write_peft(folder):
    """Write a PEFT adapter with layers of every kind, in float32 and with an alpha for each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (B, A) in SHAPES.items():
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal(B, dtype="f4")
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal(A, dtype="f4")
    tensors[f"base_model.model.{EMBEDDING}.lora_embedding_A"] = rng.standard_normal((2, 40), dtype="f4")
    tensors[f"base_model.model.{EMBEDDING}.lora_embedding_B"] = rng.standard_normal((8, 2), dtype="f4")
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"conv": 3, EMBEDDING: 2},
        "alpha_pattern": {"conv": 5},
        "target_modules": [*SHAPES, EMBEDDING],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    write_all(sys.argv[1])
