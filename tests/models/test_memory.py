"""One layer is in memory at a time: what NumPy allocates does not grow with the number of layers."""

import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_core import truncate
from lowrank_core.models.operations.extraction import extract
from lowrank_core.models.operations.resizing import resize

SHAPE, LAYER = (256, 1024), 256 * 1024 * 4
# Factors far larger than the few kilobytes that a layer's report takes, which do add up.
ADAPTER_RANK, FACTORS = 256, 256 * (256 + 1024) * 4


def peak_of(call, *arguments) -> int:
    """Bytes that Python and NumPy held at the most, above what they held before."""
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks_of(call, models) -> list[int]:
    """The peaks of a call for 4 layers and for 40."""
    call(models[4])  # what a first call imports and keeps does not count
    return [peak_of(call, models[layers]) for layers in (4, 40)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Give folders with base and tuned checkpoints and an adapter, of 4 layers and of 40."""
    folders = {}
    for layers in (4, 40):
        folder = folders[layers] = tmp_path_factory.mktemp(f"layers{layers}")
        rng = np.random.default_rng(layers)
        names = [f"model.layers.{layer}.proj" for layer in range(layers)]
        for checkpoint in ("base", "tuned"):
            weights = {f"{name}.weight": rng.standard_normal(SHAPE, dtype=np.float32) for name in names}
            save_file(weights, folder / f"{checkpoint}.safetensors")
        factors = {}
        for name in names:
            shapes = {"lora_down": (ADAPTER_RANK, SHAPE[1]), "lora_up": (SHAPE[0], ADAPTER_RANK)}
            for part, shape in shapes.items():
                factors[f"{name}.{part}.weight"] = rng.standard_normal(shape, dtype=np.float32)
        save_file(factors, folder / "adapter.safetensors")
    return folders


def test_extraction_takes_no_more_for_forty_layers_than_for_four(models):
    def extract_in(folder):
        extract(folder / "base.safetensors", folder / "tuned.safetensors", folder / "out", rank=4, force=True)

    few, many = peaks_of(extract_in, models)
    assert few > 2 * LAYER
    assert many < few + LAYER / 2


def test_resizing_takes_no_more_for_forty_layers_than_for_four(models):
    def resize_in(folder):
        resize(folder / "adapter.safetensors", folder / "smaller.safetensors", rank=4, force=True)

    few, many = peaks_of(resize_in, models)
    assert few > 2 * FACTORS
    assert many < few + FACTORS / 2


@pytest.mark.parametrize("shape", [(1024, 4096), (4096, 1024)])
def test_the_leading_part_of_a_large_matrix_takes_less_than_the_matrix(shape):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((shape[0], 40)) @ rng.standard_normal((40, shape[1]))
    single = matrix.astype(np.float32)
    truncate(single, 8)
    assert peak_of(truncate, single, 8) < single.nbytes
