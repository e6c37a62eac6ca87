"""The public API is exactly the names and signatures listed here."""

import importlib
import importlib.metadata
import inspect
import pkgutil

import numpy as np
import pytest

import lowrank_core

PUBLIC = [
    "Comparison",
    "ErrorSweep",
    "KroneckerUpdate",
    "LearningSweep",
    "LowRankUpdate",
    "RankAllocation",
    "SpaceOverlap",
    "Spectrum",
    "__version__",
    "allocate_ranks",
    "compare",
    "effective_rank",
    "equivalent_alpha",
    "error_sweep",
    "facts_update",
    "learning_gain",
    "learning_sweep",
    "low_rank_hadamard",
    "low_rank_sum",
    "low_rank_tucker",
    "numerical_rank",
    "power_rule",
    "rank_above_noise",
    "rank_for_error",
    "rank_for_ratio",
    "rank_for_variance",
    "reconstruction_error",
    "rslora",
    "scaling_rule",
    "spectrum",
    "stable_rank",
    "standard",
    "style_update",
    "truncate",
    "unscaled",
    "update_with_spectrum",
    "variance_captured",
]
SIGNATURES = {
    "spectrum": "(update, *, rank=None, method='auto', tolerance=None, workers=None, rng=0)",
    "Spectrum": "(values, norm, shape, complete, dtype='float64', missed=0.0)",
    "truncate": "(update, rank, *, method='auto', tolerance=None, workers=None, rng=0)",
    "LowRankUpdate": "(B, A, scaling=1.0)",
    "KroneckerUpdate": "(left, right, scaling=1.0)",
    "low_rank_hadamard": "(first, second)",
    "low_rank_sum": "(updates, weights=None)",
    "low_rank_tucker": "(up, mid, down, scaling=1.0)",
    "compare": "(first, second, *, rank=None, workers=None)",
    "standard": "(alpha, rank)",
    "rslora": "(alpha, rank)",
    "unscaled": "(alpha, rank)",
    "equivalent_alpha": "(alpha, rank, rule, *, to_rank=None, to_rule=None)",
    "learning_gain": "(alpha, rank, rule)",
    "variance_captured": "(spectrum, ranks=None)",
    "reconstruction_error": "(spectrum, ranks=None, scaling=1.0)",
    "error_sweep": "(spectrum, ranks, *, alpha=16.0, rules=('standard', 'rslora'))",
    "learning_sweep": "(update, ranks, *, alpha=16.0, rules=('standard', 'rslora'), steps=300, learning_rate=0.001, "
    "optimizer='sgd', init_variance=None, repeats=1, rng=0)",
    "rank_for_variance": "(spectrum, fraction)",
    "rank_for_error": "(spectrum, error)",
    "rank_for_ratio": "(spectrum, ratio)",
    "rank_above_noise": "(spectrum, noise=None)",
    "allocate_ranks": "(spectra, *, parameters=None, variance=None, max_rank=None, objective='relative')",
    "effective_rank": "(spectrum)",
    "stable_rank": "(spectrum)",
    "numerical_rank": "(spectrum)",
    "style_update": "(d, k, *, true_rank=4, noise=0.01, rng)",
    "facts_update": "(d, k, *, noise=0.01, rng)",
    "update_with_spectrum": "(values, shape, *, rng)",
}
MODULES = {module.name for module in pkgutil.iter_modules(lowrank_core.__path__) if not module.name.startswith("_")}


def test_all_is_sorted_and_is_the_public_api():
    assert lowrank_core.__all__ == PUBLIC == sorted(PUBLIC)


def test_all_is_exactly_what_is_defined():
    public = {name for name in vars(lowrank_core) if not name.startswith("_")} - MODULES
    assert public | {"__version__"} == set(lowrank_core.__all__)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures(name):
    signature = inspect.signature(getattr(lowrank_core, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_everything_public_is_documented(name):
    # A sweep's result is shown by the example of the function that computes it.
    assert "Examples\n" in inspect.getdoc(getattr(lowrank_core, name)) or name.endswith("Sweep")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_modules_all_is_sorted_and_defined(name):
    module = importlib.import_module(f"lowrank_core.{name}")
    names = list(getattr(module, "__all__", []))
    assert names == sorted(names)
    assert all(hasattr(module, name) for name in names)


def test_values_are_frozen():
    spectrum = lowrank_core.spectrum(np.eye(2))
    update = lowrank_core.LowRankUpdate(np.ones((2, 1)), np.ones((1, 2)))
    sweep = lowrank_core.error_sweep(spectrum, [1])
    learning = lowrank_core.learning_sweep(spectrum, [1], steps=1)
    product = lowrank_core.KroneckerUpdate(np.eye(2), np.eye(2))
    for value, field in ((spectrum, "norm"), (update, "B"), (product, "left"), (sweep, "errors"), (learning, "errors")):
        with pytest.raises(AttributeError):
            setattr(value, field, None)


def test_the_version_is_that_of_the_installed_package():
    assert lowrank_core.__version__ == importlib.metadata.version("lowrank_core")
