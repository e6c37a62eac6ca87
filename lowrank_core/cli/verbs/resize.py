"""The verb ``lowrank resize``: a smaller adapter from an adapter."""

from __future__ import annotations

from functools import partial

from lowrank_core import models
from lowrank_core.cli import options
from lowrank_core.cli.rank_choice import choose_rank
from lowrank_core.cli.written import write_adapter

EXAMPLES = options.examples(
    "lowrank resize my-adapter/ smaller/ --rank 8",
    "lowrank resize my-adapter/ smaller --rank 2,4,8   (smaller-r2, -r4 and -r8)",
    "lowrank resize my-adapter/ smaller/ --variance 0.99 --uniform",
    "lowrank resize lora.safetensors lora-8.safetensors --rank 8",
)


def resize(
    adapter: options.Adapter,
    out: options.OutUnlessDryRun = None,
    *,
    choice: options.RankChoice,
    modules: options.Modules,
    conversion: options.Conversion,
    rule: options.OwnRule = None,
    dtype: options.Dtype = None,
    written: options.NewAdapter,
    work: options.Work,
    reports: options.Reports,
) -> int:
    """Write the best smaller adapter of the same update, in its own format or another.

    One of --rank, --variance, --error, --ratio, --parameters and --megabytes chooses how many components each layer
    keeps; without one, all. The product BA is never formed. What else the adapter contains (modules
    saved in full, biases) is copied unchanged. The exit code is 1 if some layers failed and the others were written, or
    something is not in the adapter.
    """
    options.check_out(out, dry_run=written.dry_run)
    rank = choose_rank(choice)
    operation = partial(
        models.resize,
        adapter,
        out,
        rank=rank,
        rule=rule,
        dtype=dtype,
        **vars(modules),
        **vars(conversion),
        **vars(written),
    )
    return write_adapter(operation, (adapter, out, conversion.base), work, reports, several=isinstance(rank, tuple))
