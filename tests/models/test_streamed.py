"""Large layers in blocks of rows have the spectrum and the noise that they have whole."""

import ml_dtypes
import numpy as np
import pytest

from lowrank_core import spectrum
from lowrank_core.models import open_checkpoint, pair_checkpoints
from lowrank_core.models.pairing import changes, streamed
from lowrank_core.rounding_noise import rounding_noise

SHAPE = (300, 20)


@pytest.fixture
def pair_of(write_file, monkeypatch):
    monkeypatch.setattr(streamed, "_BLOCK_ENTRIES", 7 * SHAPE[1])

    def write(base, tuned):
        paths = (
            write_file({"embed.weight": base}, "base.safetensors"),
            write_file({"embed.weight": tuned}, "t.safetensors"),
        )
        [layer] = pair_checkpoints(*map(open_checkpoint, paths)).layers
        return layer

    return write


def weights(rng, before, after):
    sizes = np.exp2(rng.integers(-6, 3, (SHAPE[0], 1)))
    base = sizes * rng.standard_normal(SHAPE)
    tuned = base + 0.05 * rng.standard_normal((SHAPE[0], 3)) @ rng.standard_normal((3, SHAPE[1]))
    return base.astype(before), tuned.astype(after)


@pytest.mark.parametrize("before", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("after", [ml_dtypes.bfloat16, np.float32])
def test_the_spectrum_is_that_of_the_whole_update(pair_of, rng, before, after):
    layer = pair_of(*weights(rng, before, after))
    whole = spectrum(layer.update(), method="lapack")
    blocks = streamed.decompose_large(layer).spectrum
    # What spectrum promises of method="gram".
    assert np.max(np.abs(blocks.values - whole.values)) <= 1.2e-7 * whole.values[0]
    assert blocks.norm == pytest.approx(float(whole.norm), rel=1e-6)
    assert (blocks.shape, blocks.complete, blocks.dtype) == (SHAPE, True, "float32")


@pytest.mark.parametrize("unchanged", ["nothing", "rows and columns", "most", "all"])
@pytest.mark.parametrize("before", [ml_dtypes.bfloat16, np.float16])
def test_the_noise_is_that_of_the_whole_pair_up_to_the_rounding_of_its_variances(pair_of, rng, before, unchanged):
    base, tuned = weights(rng, before, ml_dtypes.bfloat16)
    base = base.astype(ml_dtypes.bfloat16).astype(before)
    if unchanged == "rows and columns":
        tuned[10:90], tuned[:, 3] = base[10:90], base[:, 3]
    elif unchanged in ("most", "all"):
        same = rng.random(SHAPE) < {"most": 0.7, "all": 1.0}[unchanged]
        tuned[same] = base[same]
    expected, noise = rounding_noise(base, tuned), streamed.decompose_large(pair_of(base, tuned)).noise
    assert (noise.unchanged, noise.applies) == (expected.unchanged, expected.applies)
    for level, whole in ((noise.one_side, expected.one_side), (noise.two_sides, expected.two_sides)):
        assert level.std == pytest.approx(whole.std, rel=1e-6)
        # Each edge may be 1 % above the true one; variances rounded up by 2^-7 raise it by half of that.
        assert whole.edge / 1.011 <= level.edge <= whole.edge * 1.011 * (1 + 2**-8)


def test_only_tall_plain_matrices_are_read_in_blocks(pair_of, rng):
    layer = pair_of(*weights(rng, ml_dtypes.bfloat16, np.float32))
    assert streamed.is_large(layer, entries=layer.tuned.size)
    assert not streamed.is_large(layer)
    assert not streamed.is_large(pair_of(*weights(rng, np.float64, np.float32)), entries=1)
    wide = pair_of(*(side.T.copy() for side in weights(rng, np.float32, np.float32)))
    assert not streamed.is_large(wide, entries=1)


def test_nan_in_a_large_layer_is_a_failure_by_name(pair_of, rng):
    base, tuned = weights(rng, np.float32, np.float32)
    tuned[250, 3] = np.nan
    with pytest.raises(ValueError, match=r"^the tuned checkpoint contains NaN"):
        streamed.decompose_large(pair_of(base, tuned))


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_layer_in_blocks_that_is_not_finite_has_the_counts_of_the_whole(pair_of, rng, side):
    base, tuned = weights(rng, np.float32, np.float32)
    (base if side == "base" else tuned)[::60, 0] = np.inf
    layer = pair_of(base, tuned)
    reason = rf"the {side} checkpoint contains NaN or infinity in 5 of its {base.size} entries"
    with pytest.raises(ValueError, match=reason):
        streamed.decompose_large(layer)
    with pytest.raises(ValueError, match=reason):
        layer.update()
    with pytest.raises(ValueError, match=reason):
        list(changes.differences(layer.base, layer.tuned, entries=100))


def test_a_change_in_blocks_that_is_not_finite_has_the_counts_of_the_whole(pair_of, rng, monkeypatch):
    monkeypatch.setattr(changes, "BLOCK_ENTRIES", 100)
    base, tuned = weights(rng, np.float32, np.float32)
    tuned[::60, 0] = np.nan
    layer = pair_of(base, tuned)
    change = changes.change_of(layer.base, layer.tuned)
    assert "NaN or infinity in 5 of its 6000 entries" in change.description
