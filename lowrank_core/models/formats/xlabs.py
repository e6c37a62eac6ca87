"""XLabs' format for Flux: one file with down and up of the attention processors' layers, and the scale 1."""

from __future__ import annotations

import re

from lowrank_core.models.formats.adapter import Adapter
from lowrank_core.models.formats.format import AdapterFile, Documented, Format
from lowrank_core.models.formats.single_file import Ends, read_factors, scale_or_one

_FACTOR = re.compile(r"(?s).*\.processor\.(qkv|proj)_lora[12]\.(down|up)\.weight")
_PAIRS: tuple[Ends, ...] = ((".down.weight", ".up.weight"),)
_MODULE = re.compile(r"(.*)\.processor\.(qkv|proj)_lora([12])")
_STREAMS = {"1": "img_attn", "2": "txt_attn"}


def _recognises(file: AdapterFile) -> bool:
    return any(_FACTOR.fullmatch(key) for key in file.tensors)


def _read(file: AdapterFile) -> Adapter:
    return read_factors(file, XLABS.name, _PAIRS, scale_of=scale_or_one, name_of=_name, is_factor=_FACTOR.fullmatch)


def _name(module: str) -> str:
    """Return Flux's own name: the first LoRA of a processor belongs to the image's stream, the second to the text's."""
    match = _MODULE.fullmatch(module)
    return module if match is None else f"{match[1]}.{_STREAMS[match[3]]}.{match[2]}"


XLABS = Format(
    name="xlabs",
    title="XLabs' format",
    factors="XLabs' processor.qkv_lora1",
    documented=Documented(
        writers="XLabs' trainer for Flux",
        layout="`double_blocks.<n>.processor.qkv_lora1.down.weight` and `.up.weight`; 1 for the image's stream, 2 for "
        "the text's",
        scale="1",
        source="diffusers, `loaders/lora_conversion_utils.py`, `_convert_xlabs_flux_lora_to_diffusers`",
    ),
    recognises=_recognises,
    read=_read,
    rules=("standard",),
)
