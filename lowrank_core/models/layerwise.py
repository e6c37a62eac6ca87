"""Work on the layers of a model, each on its own: one that fails has a reason, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from lowrank_core.models.executors import map_in_order

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(name, done, total)`` after each layer or adapter."""


class Named(Protocol):
    """What has a name, as a layer does."""

    @property
    def name(self) -> str:
        """Its name."""


Layer = TypeVar("Layer", bound=Named)
Result = TypeVar("Result")


def map_layers(
    function: Callable[[Layer], Result],
    layers: Sequence[Layer],
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generator[tuple[Layer, Result | str], None, None]:
    """Yield layers in their order, each with a function's result or the reason why there is none."""
    with closing(map_in_order(partial(_result_or_reason, function), layers, executor)) as results:
        for done, (layer, result) in enumerate(zip(layers, results, strict=True), 1):
            yield layer, result
            if progress is not None:
                progress(layer.name, done, len(layers))


def collect_layers(
    function: Callable[[Layer], Result],
    layers: Sequence[Layer],
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> tuple[list[tuple[str, Result]], dict[str, str]]:
    """Return the names of layers with a function's results, and the names of the others with the reasons."""
    results: list[tuple[str, Result]] = []
    failures: dict[str, str] = {}
    for layer, result in map_layers(function, layers, executor, progress):
        if isinstance(result, str):
            failures[layer.name] = result
        else:
            results.append((layer.name, result))
    return results, failures


def _result_or_reason(function: Callable[[Layer], Result], layer: Layer) -> Result | str:
    try:
        return function(layer)
    except ValueError as error:
        return str(error)
    except MemoryError as error:
        return f"needs more memory than there is ({error})"
