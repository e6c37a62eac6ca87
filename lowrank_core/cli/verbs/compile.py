"""The verb ``lowrank compile``: every kernel compiled before it is needed."""

from __future__ import annotations

import warnings

from rich.text import Text

from lowrank_core._results import count
from lowrank_core.cli import options, output
from lowrank_core.compilation import compile_kernels

EXAMPLES = options.examples(
    "lowrank compile",
    "NUMBA_CACHE_DIR=/opt/kernels lowrank compile",
)


def compile() -> int:  # noqa: A001 - the verb's name
    """Compile every kernel, so that no later process has to, as in an image or on the nodes of a cluster.

    Compiled code is kept beside the package, or in the user's cache where that cannot be written; NUMBA_CACHE_DIR names
    another folder. It is valid for one version of lowrank_core, Numba and Python and one kind of processor. The exit
    code is 1 where no folder can be written.
    """
    try:
        compiled = compile_kernels()
    except OSError as error:
        warnings.warn(str(error), stacklevel=2)
        return output.exit_code(complete=False)
    output.show([Text(f"{count(len(compiled.kernels), 'kernel')} in {compiled.seconds:.1f} s: {compiled.folder}")])
    return output.exit_code(complete=True)
