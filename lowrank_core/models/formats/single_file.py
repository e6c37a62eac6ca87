"""Single files of factors: modules with two factors each, an alpha or none, and what follows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lowrank_core.models.files.tensors import StoredTensor, read_tensors
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    OtherTensor,
    Placement,
    both_factors,
    build_of,
    by_module,
    read_layers,
)
from lowrank_core.models.formats.format import AdapterFile, applied_scale

ALPHA = ".alpha"

MAGNITUDES = "DoRA magnitudes, which rescale each row of base plus update; the figures are of γBA alone"
_FOLLOWERS = {
    ".dora_scale": MAGNITUDES,
    ".lora_magnitude_vector": MAGNITUDES,
    ".lora_magnitude_vector.weight": MAGNITUDES,
    ".lora_magnitude_vector.default.weight": MAGNITUDES,
    ".lora_B.bias": "bias of lora_B, times the layer's scale",
    ".lora_up.bias": "bias of lora_up, times the layer's scale",
}
_COMPONENTS = ("transformer.", "unet.", "diffusion_model.", "model.diffusion_model.", "base_model.model.")

Ends = tuple[str, str]
"""How the names of A and B end, after the module's."""


class Scale(NamedTuple):
    """The alpha, rule and scale of a layer, and where they came from in words."""

    alpha: float
    rule: str
    scaling: float
    source: str


def read_factors(
    file: AdapterFile,
    format_name: str,
    pairs: Sequence[Ends],
    *,
    scale_of: Callable[[str, int, float | None], Scale],
    name_of: Callable[[str], str] | None = None,
    is_factor: Callable[[str], object] | None = None,
    stores_alpha: bool = False,
) -> Adapter:
    """Return the modules that have factors with such names, each with the scale that ``scale_of(module, rank, α)`` is.

    α is None where the file has none for the module. `name_of` gives the base model's name of a module: by default
    without the component of a pipeline that it is in. `is_factor` says which tensors may be factors, and `stores_alpha`
    that the format has an alpha for every layer.
    """
    ends = [end for pair in pairs for end in pair]
    candidates = {key: tensor for key, tensor in file.tensors.items() if is_factor is None or is_factor(key)}
    modules, rest = by_module(candidates, ends)
    rest |= {key: tensor for key, tensor in file.tensors.items() if key not in candidates}
    names = base_names(modules, name_of or without_component)
    alphas = read_alphas({module: rest.pop(module + ALPHA) for module in modules if module + ALPHA in rest})

    def read(module: str, tensors: Mapping[str, StoredTensor]) -> AdapterLayer:
        A, B = both_factors(module, tensors, _one_pair(module, tensors, pairs))
        build, fixed = build_of(module, A, B)
        has_alpha = module in alphas
        scale = scale_of(module, A.shape[0], alphas[module].number if has_alpha else None)
        scaled = has_alpha or stores_alpha
        keys = (A.key, B.key, module + ALPHA)[: 3 if scaled else 2]
        dims = B.shape[0], *A.shape[1:]
        return AdapterLayer(
            placement=Placement(format_name, names[module], module, keys, dims, unscaled=not scaled),
            rank=A.shape[0],
            alpha=scale.alpha,
            rule=scale.rule,
            scaling=scale.scaling,
            scaling_source=scale.source,
            tensors=(B, A),
            build=build,
            fixed=fixed,
        )

    layers, failures = read_layers(modules, read)
    others = []
    for layer in layers:
        for end, meaning in _FOLLOWERS.items():
            tensor = rest.pop(layer.placement.module + end, None)
            if tensor is not None:
                scaling = layer.scaling if end.endswith("bias") else None
                others.append(OtherTensor(tensor, tensor.key, meaning, scaling, layer.name, meaning is MAGNITUDES))
    return Adapter(
        path=file.path,
        format=format_name,
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        unsupported={names[module]: reason for module, reason in failures.items()},
        others=tuple(others),
        unread=rest,
        metadata=file.metadata,
    )


def scale_or_one(_module: str, rank: int, alpha: float | None) -> Scale:
    """Return α/r of a module that has an alpha, and else 1."""
    if alpha is None:
        return Scale(float(rank), "standard", 1.0, "no alpha in the file: scale 1")
    return Scale(alpha, "standard", applied_scale(alpha, "standard", rank), f"alpha {alpha:g} (.alpha) / rank {rank}")


def has_factors(tensors: Iterable[str], pairs: Sequence[Ends]) -> bool:
    """Whether any tensor is a factor with such a name."""
    ends = tuple(end for pair in pairs for end in pair)
    return any(key.endswith(ends) for key in tensors)


class StoredAlpha(NamedTuple):
    """An alpha as it is stored: what was read, and the tensor."""

    tensor: StoredTensor
    values: tuple[float, ...]

    @property
    def number(self) -> float:
        """Check that it is one number, and return it."""
        if len(self.values) != 1:
            raise ValueError(f"{self.tensor.key!r} has shape {self.tensor.shape}, but alpha is one number")
        return self.values[0]


def read_alphas(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredAlpha]:
    """Read the alphas of modules, all at once."""
    small = {module: tensor for module, tensor in tensors.items() if tensor.size == 1}
    values = dict(zip(small, read_tensors(small.values()), strict=True))
    return {
        module: StoredAlpha(tensor, (float(values[module].reshape(())),) if module in values else ())
        for module, tensor in tensors.items()
    }


def base_names(modules: Iterable[str], name_of: Callable[[str], str]) -> dict[str, str]:
    """Return a name of its own for each module: that of the base model, or the file's where two would have one name."""
    modules = list(modules)
    counts = Counter(map(name_of, modules))
    return {module: name_of(module) if counts[name_of(module)] == 1 else module for module in modules}


def without_component(module: str) -> str:
    """Return a module's name without that of the model's component that it is in, as "transformer."."""
    return next((module.removeprefix(start) for start in _COMPONENTS if module.startswith(start)), module)


def _one_pair(module: str, tensors: Mapping[str, StoredTensor], pairs: Sequence[Ends]) -> Ends:
    given = [ends for ends in pairs if any(end in tensors for end in ends)]
    if len(given) > 1:
        names = " and ".join(repr(ends[0]) for ends in given)
        raise ValueError(f"{module!r} has factors under several names ({names}): which of them are applied is unknown")
    return given[0]
