"""The three namings that diffusers had before PEFT's: one file with down and up of each layer; α/r, or the scale 1."""

from __future__ import annotations

import re

from lowrank_core.models.formats.adapter import Adapter
from lowrank_core.models.formats.format import AdapterFile, Documented, Format
from lowrank_core.models.formats.single_file import Ends, has_factors, read_factors, scale_or_one, without_component

_PAIRS: tuple[Ends, ...] = (
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
_PROCESSOR = re.compile(r"(.*)\.processor\.(to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)")


def _name(module: str) -> str:
    """Return the base model's name: an attention processor's factors belong to the attention's own projections."""
    name = without_component(module)
    match = _PROCESSOR.fullmatch(name)
    return name if match is None else f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else "")


def _recognises(file: AdapterFile) -> bool:
    return has_factors(file.tensors, _PAIRS)


def _read(file: AdapterFile) -> Adapter:
    return read_factors(file, OLD_DIFFUSERS.name, _PAIRS, scale_of=scale_or_one, name_of=_name)


OLD_DIFFUSERS = Format(
    name="old-diffusers",
    title="diffusers' older format",
    factors="diffusers' older lora.down and lora.up",
    documented=Documented(
        writers="diffusers before it took PEFT's names",
        layout="`<module>.lora.down.weight`, `<module>.lora_linear_layer.down.weight` or "
        "`<processor>.to_q_lora.down.weight`, and the same with `up`",
        scale="`.alpha`/r, and without an alpha 1",
        source="ComfyUI, `comfy/weight_adapter/lora.py`",
    ),
    recognises=_recognises,
    read=_read,
    rules=("standard",),
)
