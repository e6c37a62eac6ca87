"""The verb ``lowrank convert``: the same adapter in another format, dtype, alpha or scaling rule."""

from __future__ import annotations

from functools import partial

from lowrank_core import models
from lowrank_core.cli import options
from lowrank_core.cli.written import write_adapter

EXAMPLES = options.examples(
    "lowrank convert lora.safetensors my-adapter/ --format peft",
    "lowrank convert my-adapter/ lora.safetensors --format diffusers",
    "lowrank convert my-adapter/ for-vllm/ --uniform   (scale 1 in every reader)",
)


def convert(
    adapter: options.Adapter,
    out: options.Out,
    *,
    modules: options.Modules,
    conversion: options.Conversion,
    rule: options.OwnRule = None,
    dtype: options.Dtype = None,
    written: options.NewAdapter,
    work: options.Work,
    reports: options.Reports,
) -> int:
    """Write the same adapter in another format, dtype, alpha or scaling rule, and change nothing else.

    Factors are copied as they are where the new format can say their scale, and multiplied by what is missing where it
    cannot. What the new format cannot hold is named, and the exit code is then 1, as it is if some layers failed.
    """
    operation = partial(
        models.convert,
        adapter,
        out,
        rule=rule,
        dtype=dtype,
        **vars(modules),
        **vars(conversion),
        **vars(written),
    )
    return write_adapter(operation, (adapter, out, conversion.base), work, reports)
