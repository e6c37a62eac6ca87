"""LyCORIS' updates under kohya's names: LoHa, LoKr, LoRA with Tucker cores, differences, GLoRA, OFT, BOFT and IA3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    BaseUpdate,
    OtherTensor,
    Placement,
)
from lowrank_core.models.formats.base_updates import ON_ITS_BASE, OrthogonalBlocks, ScaledChannels, glora
from lowrank_core.models.formats.format import AdapterFile, Documented, Format, applied_scale
from lowrank_core.models.formats.kohya import KOHYA
from lowrank_core.models.formats.single_file import (
    ALPHA,
    MAGNITUDES,
    Scale,
    StoredAlpha,
    base_names,
    read_alphas,
    without_component,
)
from lowrank_core.models.formats.structured import (
    LOHA,
    LOKR,
    TUCKER,
    Parts,
    Tensors,
    difference_parts,
    loha_parts,
    lokr_parts,
    tensors_of,
    tucker_parts,
)

_GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight")
_OFT = ("oft_blocks", "rescale")
_IA3 = ("weight", "on_input")
_TLORA = ("q_layer.weight", "p_layer.weight", "lambda_layer")
_DIFFERENCE = "diff"
_MEANINGS = {
    ".diff": "the difference of a vector, which is added to it",
    ".diff_b": "the difference of a bias, which is added to it",
    ".w_norm": "the difference of a norm's weight, which is added to it",
    ".b_norm": "the difference of a norm's bias, which is added to it",
    ".set_weight": "a weight that takes the place of the base's",
    ".reshape_weight": "the shape that the base's weight is padded to",
}
_EMBEDDING = "bundle_emb."


class _Module(NamedTuple):
    """One module of a file: its key, its name, its tensors by the ends of their names, and its alpha."""

    key: str
    name: str
    tensors: Tensors
    alpha: StoredAlpha | None

    @property
    def placement(self) -> Placement:
        """Where the module's update is stored as kohya's pair, which every reader of LyCORIS' files reads."""
        keys = tuple(f"{self.key}.{end}" for end in (*TUCKER[:2], ALPHA.removeprefix(".")))
        return Placement(KOHYA.name, self.name, self.key, keys, ())

    def scale(self, divisor: int, factor: str) -> Scale:
        """Return α/r, where a missing or zero α means r."""
        alpha = None if self.alpha is None else self.alpha.number
        if alpha:
            source = f"alpha {alpha:g} (.alpha) / rank {divisor} ({factor})"
            return Scale(alpha, "standard", applied_scale(alpha, "standard", divisor), source)
        given = "no alpha in the file" if alpha is None else "alpha 0 in the file"
        source = f"{given}, which stands for the rank {divisor} ({factor}): scale 1"
        return Scale(float(divisor), "standard", 1.0, source)


class _Kind(NamedTuple):
    """One kind of update: the ends of names that tell it, those of all its tensors, and how a module is read."""

    marks: tuple[str, ...]
    ends: tuple[str, ...]
    read: Callable[[_Module], AdapterLayer | BaseUpdate]


def _recognises(file: AdapterFile) -> bool:
    return any(_kind_of(key, tensor) or _meaning(key) for key, tensor in file.tensors.items())


def _read(file: AdapterFile) -> Adapter:
    rest = dict(file.tensors)
    kinds = {
        key.removesuffix(f".{mark}"): kind
        for key, tensor in file.tensors.items()
        for kind, mark in filter(None, [_kind_of(key, tensor)])
    }
    tensors = {
        module: {end: rest.pop(f"{module}.{end}") for end in kind.ends if f"{module}.{end}" in rest}
        for module, kind in kinds.items()
    }
    names = base_names(kinds, without_component)
    alphas = read_alphas({module: rest.pop(module + ALPHA) for module in kinds if module + ALPHA in rest})
    layers: list[AdapterLayer] = []
    base_updates: list[BaseUpdate] = []
    unsupported: dict[str, str] = {}
    for key, kind in sorted(kinds.items()):
        try:
            update = kind.read(_Module(key, names[key], tensors[key], alphas.get(key)))
        except ValueError as error:
            unsupported[names[key]] = str(error)
            continue
        if isinstance(update, BaseUpdate):
            base_updates.append(update)
            unsupported[names[key]] = update.reason
        else:
            layers.append(update)
    others = [*_magnitudes(layers, rest), *_others(rest)]
    return Adapter(
        path=file.path,
        format=LYCORIS.name,
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        unsupported=unsupported,
        base_updates=tuple(base_updates),
        others=tuple(others),
        unread=rest,
        metadata=file.metadata,
    )


def _kind_of(key: str, tensor: StoredTensor) -> tuple[_Kind, str] | None:
    """Return the kind of update that a tensor tells, and how its name ends; a vector is no layer's difference."""
    if key.endswith(f".{_DIFFERENCE}") and len(tensor.shape) < 2:
        return None
    return next(((kind, mark) for kind in _KINDS for mark in kind.marks if key.endswith(f".{mark}")), None)


def _meaning(key: str) -> str:
    if key.startswith(_EMBEDDING):
        return "the embedding of a trigger word, of a text encoder"
    return next((meaning for end, meaning in _MEANINGS.items() if key.endswith(end)), "")


def _magnitudes(layers: list[AdapterLayer], rest: dict[str, StoredTensor]) -> Iterator[OtherTensor]:
    """Yield the magnitudes of layers, and remove each from the other tensors."""
    for layer in layers:
        tensor = rest.pop(f"{layer.placement.module}.dora_scale", None)
        if tensor is not None:
            yield OtherTensor(tensor, tensor.key, MAGNITUDES, follows=layer.name, magnitudes=True)


def _others(rest: dict[str, StoredTensor]) -> Iterator[OtherTensor]:
    """Yield the tensors whose meaning is known, and remove each from the other tensors."""
    for key in [key for key in rest if _meaning(key)]:
        yield OtherTensor(rest.pop(key), key, _meaning(key))


def _structured(parts_of: Callable[[str, Tensors], Parts]) -> Callable[[_Module], AdapterLayer]:
    """Return how a module is read whose tensors make the update, whatever the base is."""

    def read(module: _Module) -> AdapterLayer:
        parts = parts_of(module.key, module.tensors)
        if parts.divisor is None:
            scale = Scale(float(parts.rank), "standard", 1.0, "both sides are whole: scale 1, whatever alpha is")
        else:
            scale = module.scale(parts.divisor, parts.factor)
        return _layer(module, parts, scale)

    return read


def _difference(module: _Module) -> AdapterLayer:
    parts = difference_parts(module.tensors[_DIFFERENCE])
    return _layer(module, parts, Scale(float(parts.rank), "standard", 1.0, "a difference (diff): scale 1"))


def _layer(module: _Module, parts: Parts, scale: Scale) -> AdapterLayer:
    return AdapterLayer(
        placement=replace(module.placement, dims=parts.dims),
        rank=parts.rank,
        alpha=scale.alpha,
        rule=scale.rule,
        scaling=scale.scaling,
        scaling_source=scale.source,
        tensors=parts.tensors,
        build=parts.build,
    )


def _glora(module: _Module) -> BaseUpdate:
    if "bm.weight" in module.tensors:
        raise ValueError(f"{module.key!r} is a GLoRA with a Tucker core (bm), which LyCORIS itself does not write")
    tensors = tensors_of(module.key, module.tensors, _GLORA[:4])
    layer = _base_layer(module, tensors, glora, module.scale(tensors[1].shape[0], "a2"))
    return BaseUpdate(layer, _with_base("GLoRA", "W·a1·a2 + b1·b2"))


def _orthogonal(module: _Module) -> BaseUpdate:
    tensors = (module.tensors["oft_blocks"], *(module.tensors[end] for end in _OFT[1:] if end in module.tensors))
    axes = len(tensors[0].shape)
    if axes not in (3, 4):
        raise ValueError(f"{tensors[0].key!r} has {axes} axes; the blocks of OFT have 3, and those of BOFT 4")
    constraint = 0.0 if module.alpha is None else module.alpha.number
    build = OrthogonalBlocks(constraint, len(tensors) > 1)
    scale = Scale(constraint, "standard", 1.0, f"orthogonal blocks of constraint {constraint:g} (.alpha): scale 1")
    return BaseUpdate(_base_layer(module, tensors, build, scale), _with_base("OFT" if axes == 3 else "BOFT", "R·W − W"))


def _scaled_channels(module: _Module) -> BaseUpdate:
    if "weight" not in module.tensors:
        raise ValueError(f"{module.key!r} has on_input but no weight: the file is incomplete, save the adapter again")
    on_input = read_alphas({module.key: module.tensors["on_input"]})[module.key].number
    scale = Scale(1.0, "standard", 1.0, "multiplied channels (IA3): scale 1")
    layer = _base_layer(module, (module.tensors["weight"],), ScaledChannels(bool(on_input)), scale)
    return BaseUpdate(layer, _with_base("IA3", "l·W"))


def _timestep_ranks(module: _Module) -> BaseUpdate:
    raise ValueError(
        f"{module.key!r} is a T-LoRA: its update is the product of p, lambda and q less that of the factors that "
        "training began with, which the file does not have"
    )


def _base_layer(
    module: _Module, tensors: tuple[StoredTensor, ...], build: Callable[..., Any], scale: Scale
) -> AdapterLayer:
    parts = Parts(tensors, build, (), 0, None, "")
    return _layer(module, parts, scale)


def _with_base(kind: str, update: str) -> str:
    return f"{kind}: the update is {update}, with W the base's weight: {ON_ITS_BASE}"


_KINDS = (
    _Kind(TUCKER[2:], TUCKER, _structured(tucker_parts)),
    _Kind(LOHA, LOHA, _structured(loha_parts)),
    _Kind(LOKR, LOKR, _structured(lokr_parts)),
    _Kind((_DIFFERENCE,), (_DIFFERENCE,), _difference),
    _Kind(_GLORA[:1], _GLORA, _glora),
    _Kind(_OFT[:1], _OFT, _orthogonal),
    _Kind(_IA3[1:], _IA3, _scaled_channels),
    _Kind(_TLORA[2:], _TLORA, _timestep_ranks),
)

LYCORIS = Format(
    name="lycoris",
    title="LyCORIS' format",
    factors="LyCORIS' hada_w1_a, lokr_w1 or diff",
    recognises=_recognises,
    read=_read,
    lossy_names=KOHYA.lossy_names,
    place=KOHYA.place,
    rules=KOHYA.rules,
    scale=KOHYA.scale,
    headers=KOHYA.headers,
    documented=Documented(
        writers="LyCORIS, and the trainers that use it; full differences also of ComfyUI",
        layout="kohya's names of modules, then `.hada_w1_a`, … (LoHa), `.lokr_w1`, … (LoKr), `.lora_mid.weight` "
        "(Tucker cores), `.diff` (a whole difference); with the base model also `.a1.weight`, … (GLoRA), `.oft_blocks` "
        "(OFT, BOFT), `.on_input` (IA3) and `.dora_scale` beside any. Written as kohya's pairs",
        scale="`.alpha`/r, once; an alpha that is missing or 0 stands for r. 1 where both sides of a LoKr are whole, "
        "and of a difference",
        source="LyCORIS, `modules/loha.py`, `modules/lokr.py`, `forward`",
    ),
)
