"""Work on layers: each result or reason in the order of the layers, whatever runs it."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from lowrank_core.models.executors import collect_layers, map_as_completed, map_layers


class Layer(NamedTuple):
    name: str
    value: int


LAYERS = [Layer(f"layer{value}", value) for value in (3, 0, -1, 2)]


def reciprocal(layer):
    if layer.value < 0:
        raise MemoryError("8 GiB")
    if layer.value == 0:
        raise ValueError("zero has no reciprocal")
    return 1 / layer.value


@pytest.mark.parametrize("workers", [None, 2])
def test_a_layer_that_fails_has_a_reason_and_the_others_have_results(workers):
    executor = None if workers is None else ThreadPoolExecutor(workers)
    results, failures = collect_layers(reciprocal, LAYERS, executor)
    assert results == [("layer3", 1 / 3), ("layer2", 0.5)]
    assert failures["layer0"] == "zero has no reciprocal"
    assert "more memory" in failures["layer-1"]


def test_progress_is_called_after_the_caller_is_done_with_a_layer():
    events = []
    for layer, _ in map_layers(reciprocal, LAYERS[:2], None, lambda *call: events.append(call)):
        events.append(layer.name)
    assert events == ["layer3", ("layer3", 1, 2), "layer0", ("layer0", 2, 2)]


def test_other_errors_are_raised():
    with pytest.raises(TypeError):
        collect_layers(lambda layer: layer.value + "", LAYERS)


@pytest.mark.parametrize("workers", [None, 3])
def test_every_item_comes_with_its_own_result_as_it_is_completed(workers):
    executor = None if workers is None else ThreadPoolExecutor(workers)
    assert dict(map_as_completed(abs, range(-2000, 0), executor)) == {item: -item for item in range(-2000, 0)}
