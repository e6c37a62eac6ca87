"""PEFT's format: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lowrank_core.models.files.tensors import StoredTensor
from lowrank_core.models.formats.adapter import (
    Adapter,
    AdapterLayer,
    OtherTensor,
    Placement,
    both_factors,
    build_of,
)
from lowrank_core.models.formats.format import AdapterFile, Documented, Format, Headers, Kept, StoredScale
from lowrank_core.models.formats.peft_config import (
    PeftConfig,
    as_names,
    check_peft_config,
    lora_config,
    meaning_in_full,
    trained_rows,
)
from lowrank_core.models.formats.peft_experts import (
    experts_warnings,
    order_in_module,
    read_experts,
    separate_experts_warnings,
    targeted_parameters,
)
from lowrank_core.models.formats.peft_other_types import OTHER_TYPES
from lowrank_core.models.module_names import PEFT_PREFIX, followed_module

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
_DEFAULT_ADAPTER = "default"
# Of a name with a newline in it too, or its layer would be passed over.
_FACTOR = re.compile(r"(?s)(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?")
_FACTORS, _EMBEDDING_FACTORS = ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")
_LORA_BIAS, _MAGNITUDES = ".lora_B.bias", "lora_magnitude_vector"
_ALTERS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_ADAPTER_NAME = re.compile(
    r"(?s)(?P<before>.+\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?!(?:weight|bias)$)"
    r"(?P<adapter>[^.]+)(?P<after>(?:\.(?:weight|bias))?)"
)
# The inner projection of torch.nn.MultiheadAttention.
_ATTENTION_PROJECTION = ".base_layer.out_proj"
_NESTED = re.compile(r"(?:\.base_layer)*(?P<factor>\.lora_[AB](?:\.[^.]+)?(?:\.weight)?)$")
_COMPILED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")


def _recognises(file: AdapterFile) -> bool:
    # The configuration says best what the tensors are, of another type of adapter too.
    if file.in_memory:
        return "peft_type" in file.read_config(_CONFIG)
    if file.path.name not in (_WEIGHTS, _PICKLED_WEIGHTS) or not file.tensors:
        return False
    return file.has_config(_CONFIG) or any(_FACTOR.fullmatch(key) for key in file.tensors)


def _read(file: AdapterFile) -> Adapter:
    raw = file.read_config(_CONFIG)
    read_other = OTHER_TYPES.get(str(raw.get("peft_type")))
    if read_other is not None:
        return read_other(file, raw)
    config = _config_beside(file)
    names, renamed = _names(file)
    factors: dict[str, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for key, tensor in file.tensors.items():
        match = _FACTOR.fullmatch(names[key])
        if match:
            factors.setdefault(match["module"], {})[match["factor"]] = tensor
        else:
            rest[names[key]] = tensor
    if not factors:
        raise ValueError(
            f"{str(file.path)!r} contains no LoRA factors: no tensor of it is a lora_A or lora_B as PEFT names them"
        )
    plain, stacks, failures = _layers(factors, config)
    scales = {module: _scale_of(layer) for module, layer in plain.items()}
    parameters = {experts[0].placement.module: _scale_of(experts[0]) for experts in stacks.values()}
    scales |= parameters
    warnings, inherited = _warnings(scales, config)
    return Adapter(
        path=file.path,
        format=PEFT.name,
        layers=(*plain.values(), *(layer for experts in stacks.values() for layer in experts)),
        unsupported=failures,
        others=tuple(_other(name, tensor, plain, config) for name, tensor in rest.items()),
        warnings=(*renamed, *_file_warnings(file, plain), *warnings, *experts_warnings(parameters, config)),
        inherited_warnings=inherited,
        initialisation=_altering_initialisation(config),
        settings=config.raw,
        metadata=file.metadata,
    )


def _names(file: AdapterFile) -> tuple[dict[str, str], list[str]]:
    """Return each tensor's name as PEFT writes it, and what a user should know of names that are not so."""
    names, adapters, compiled = {}, set(), []
    for key in file.tensors:
        name = _COMPILED.sub("", key)
        if name != key:
            compiled.append(key)
        match = _ADAPTER_NAME.fullmatch(name)
        if match:
            adapters.add(match["adapter"])
            name = match["before"] + match["after"]
        names[key] = name.removeprefix(PEFT_PREFIX)
    if len(adapters) > 1 or len(set(names.values())) < len(names):
        several = " and ".join(map(repr, sorted(adapters))) or "twice the same"
        raise ValueError(
            f"{str(file.path)!r} has factors of several adapters ({several}), and one configuration: save each in a "
            "folder of its own, as PEFT's save_pretrained does"
        )
    warnings = []
    if adapters - {_DEFAULT_ADAPTER}:
        name = adapters.pop()
        warnings.append(
            f"the adapter's name {name!r} is in the names of tensors, as in the state of a model in memory: PEFT loads "
            f"them under adapter_name={name!r}, and else none of them"
        )
    if compiled:
        warnings.append(
            f"{len(compiled)} of {len(names)} tensors have '_orig_mod.' in their names, as {compiled[0]!r}: they were "
            "saved from a compiled model, and PEFT loads nothing of them into one that is not; the names here are "
            "without it"
        )
    return names, warnings


def _layers(
    factors: Mapping[str, Mapping[str, StoredTensor]], config: PeftConfig
) -> tuple[dict[str, AdapterLayer], dict[str, list[AdapterLayer]], dict[str, str]]:
    """Return the layers of modules, the experts of parameters, and why other modules cannot be read; by module."""
    rows = {
        module: next(iter(tensors["lora_A"].shape), 0) for module, tensors in factors.items() if "lora_A" in tensors
    }
    parameters = targeted_parameters(rows, config)
    plain, stacks, failures = {}, {}, {}
    for module, tensors in sorted(factors.items()):
        try:
            if module in parameters:
                stacks[module] = read_experts(module, parameters[module], tensors, _FACTORS, config)
            else:
                plain[module] = _layer(module, tensors, config)
        except ValueError as error:
            failures[parameters.get(module) or _layer_name(module)] = str(error)
    return plain, stacks, failures


def _file_warnings(file: AdapterFile, modules: Collection[str]) -> Iterator[str]:
    """Yield what a user should know of other adapters in the folder, and of modules that PEFT adds twice."""
    inner = [] if file.in_memory else sorted(each.parent.name for each in file.path.parent.glob(f"*/{_CONFIG}"))
    if inner:
        yield f"the folder has more adapters in subfolders, which are not part of this one: {', '.join(inner)}"
    attention = [module for module in modules if module.endswith(_ATTENTION_PROJECTION)]
    if attention:
        yield (
            f"PEFT (0.21) adds the update of the out_proj of a MultiheadAttention twice, as of "
            f"{_layer_name(attention[0])!r}, in forward and in merge: the figures are of the update once"
        )


def _scale_of(layer: AdapterLayer) -> StoredScale:
    return StoredScale(layer.rank, layer.alpha, layer.scaling)


def _config_beside(file: AdapterFile) -> PeftConfig:
    """Read the configuration beside the one file that PEFT would read: any other file has none."""
    if not file.has_config(_CONFIG):
        raise FileNotFoundError(
            f"no {_CONFIG} beside {str(file.path)!r}: alpha and the scaling rule are in it, and without them the scale "
            "of the update is unknown"
        )
    return check_peft_config(file.path.with_name(_CONFIG), file.read_config(_CONFIG))


def _layer(module: str, tensors: Mapping[str, StoredTensor], config: PeftConfig) -> AdapterLayer:
    embedding = any(name in _EMBEDDING_FACTORS for name in tensors)
    names = _EMBEDDING_FACTORS if embedding else _FACTORS
    A, B = both_factors(module, tensors, names)
    rank, configured = A.shape[0], _configured_name(module)
    build, fixed = build_of(module, A, B, config.rank_of(configured))
    alpha, source = config.alpha_of(configured)
    return AdapterLayer(
        placement=Placement(
            PEFT.name, _layer_name(module), configured, (A.key, B.key), (B.shape[0], *A.shape[1:]), embedding
        ),
        rank=rank,
        alpha=alpha,
        rule=config.rule,
        scaling=config.scaling(alpha, rank),
        scaling_source=config.describe_scale(alpha, source, rank, names[0]),
        tensors=(B, A),
        build=build,
        # An embedding's weight is (vocabulary, dim); a convolution's is never stored as (in, out).
        transposed=embedding or (config.fan_in_fan_out and len(A.shape) == 2),
        fixed=fixed,
    )


def _layer_name(module: str) -> str:
    return module.replace(".base_layer.", ".")


def _configured_name(module: str) -> str:
    # What PEFT matches patterns with: of a layer within a wrapped one, the name of the outer.
    return module.partition(".base_layer")[0]


def _other(name: str, tensor: StoredTensor, layers: Mapping[str, AdapterLayer], config: PeftConfig) -> OtherTensor:
    followed = followed_module(name, layers, ("lora_", "base_layer."))
    biased = layers.get(name.removesuffix(_LORA_BIAS)) if name.endswith(_LORA_BIAS) else None
    meaning = _meaning(name)
    whole = "" if meaning else meaning_in_full(name, as_names(config.raw.get("modules_to_save")))
    embedding, rows = trained_rows(name, tensor.shape[0] if tensor.shape else 0, config.raw)
    return OtherTensor(
        tensor,
        embedding or (_layer_name(name) if whole else name),
        meaning or whole or "unknown to LoRA",
        scaling=biased.scaling if biased else None,
        follows=layers[followed].name if followed else "",
        magnitudes=_MAGNITUDES in name,
        replaces=bool(whole or rows),
        rows=rows,
    )


def _meaning(name: str) -> str:
    if _MAGNITUDES in name:
        return "DoRA magnitudes, which rescale each row of base plus update"
    if name.endswith(_LORA_BIAS):
        return "bias of lora_B, times the layer's scale"
    if "trainable_tokens" in name:
        return "rows of an embedding trained in full (trainable_token_indices)"
    return ""


def _altering_initialisation(config: PeftConfig) -> str | None:
    initialisation = config.raw.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower().startswith(_ALTERS_BASE):
        return initialisation
    return None


def _warnings(scales: Mapping[str, StoredScale], config: PeftConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a user should know of layers with these scales under this configuration, and what is inherited."""
    inherited = tuple(_inherited_warnings(scales, config))
    readers = (*_reader_warnings(scales, config), *separate_experts_warnings(scales, config))
    return (*_base_warnings(config), *inherited, *readers), inherited


def _base_warnings(config: PeftConfig) -> Iterator[str]:
    initialisation = _altering_initialisation(config)
    if initialisation is not None:
        yield (
            f"init_lora_weights {initialisation!r} altered the base when training began: γBA is added to that altered "
            "base, and is not the update of the original one. Convert it with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) to get an adapter that stands alone"
        )
    if config.raw.get("use_dora"):
        yield "use_dora: the update is m·(W + γBA)/‖W + γBA‖ − W, which is not low-rank; the figures are of γBA alone"


def _inherited_warnings(scales: Mapping[str, StoredScale], config: PeftConfig) -> Iterator[str]:
    if config.raw.get("alora_invocation_tokens"):
        yield "alora_invocation_tokens: the update is applied only to the tokens that follow the invocation"
    given = {module: config.rank_of(_configured_name(module)) for module in scales}
    unloadable = [module for module, scale in scales.items() if scale.rank != given[module]]
    if unloadable:
        first = unloadable[0]
        yield (
            f"{len(unloadable)} of {len(scales)} layers have another rank in their factors than in {_CONFIG}, as "
            f"{_layer_name(first)!r} with {scales[first].rank} and {given[first]}: PEFT refuses to load them; the "
            "scales given here divide by the rank of the factors"
        )
    ambiguous = [module for module in scales if len(set(_matching_alphas(module, config).values())) > 1]
    if ambiguous:
        matching = ", ".join(f"{key!r}: {alpha:g}" for key, alpha in _matching_alphas(ambiguous[0], config).items())
        yield (
            f"{len(ambiguous)} of {len(scales)} layers match several alpha patterns, as {_layer_name(ambiguous[0])!r} "
            f"({matching}): PEFT takes the first in the file, and sorts them when it saves, so training may have taken "
            "another. Write each as '^' and the escaped full name"
        )


def _matching_alphas(module: str, config: PeftConfig) -> dict[str, float]:
    return config.alpha_pattern.matching(_configured_name(module))


def _reader_warnings(scales: Mapping[str, StoredScale], config: PeftConfig) -> Iterator[str]:
    single = config.scaling(config.lora_alpha, config.r)
    readers: tuple[tuple[str, Callable[[StoredScale], float]], ...] = (
        ("llama.cpp applies lora_alpha over each tensor's own rank", lambda scale: config.lora_alpha / scale.rank),
        ("readers of a single scale (older vLLM) apply that of r and lora_alpha to every layer", lambda _: single),
        ("readers that do not know use_rslora apply α/r", lambda scale: scale.alpha / scale.rank),
    )
    for claim, read in readers:
        wrong = [module for module, scale in scales.items() if not math.isclose(read(scale), scale.scaling)]
        if wrong:
            first = scales[wrong[0]]
            yield (
                f"{claim}: a different scale in {len(wrong)} of {len(scales)} layers, as {read(first):.6g} instead of "
                f"{first.scaling:.6g} in {_layer_name(wrong[0])!r}. Right in every reader: each B multiplied by its "
                "scale, all factors padded with zeros to one rank r, lora_alpha = r, no use_rslora, no patterns"
            )


def _place(name: str, dims: tuple[int, ...], prefix: str | None, embedding: bool) -> Placement:
    module = f"{prefix}.{name}" if prefix else name
    A, B = _EMBEDDING_FACTORS if embedding else (f"{factor}.weight" for factor in _FACTORS)
    keys = f"{PEFT_PREFIX}{module}.{A}", f"{PEFT_PREFIX}{module}.{B}"
    return Placement(PEFT.name, name, module, keys, dims, embedding)


def _place_parameter(key: str, dims: tuple[int, ...], prefix: str | None, expert: int, experts: int) -> Placement:
    owner, _, parameter = key.rpartition(".")
    placement = _place(owner, dims, prefix, embedding=False)
    name = key.removesuffix(".weight") + (f"[{expert}]" if experts else "")
    return replace(placement, name=name, module=f"{placement.module}.{parameter}", expert=expert, experts=experts)


def _headers(stored: Mapping[Placement, StoredScale], rule: str, kept: Kept) -> Headers:
    raw = lora_config(
        {placement.module: scale.rank for placement, scale in stored.items()},
        {placement.module: scale.alpha for placement, scale in stored.items()},
        use_rslora=rule == "rslora",
        parameters={placement.module for placement in stored if _is_parameter(placement)},
        others=kept.modules,
        settings=kept.settings,
    )
    config = check_peft_config(Path(_CONFIG), raw)
    modules = {each: each.module if _is_parameter(each) else _module_of(each) for each in stored}
    scales = dict(sorted((modules[placement], scale) for placement, scale in stored.items()))
    return Headers(config=raw, warnings=_warnings(scales, config)[0])


def _module_of(placement: Placement) -> str:
    key = _COMPILED.sub("", placement.keys[0])
    match = _FACTOR.fullmatch(re.sub(_ADAPTER_NAME, r"\g<before>\g<after>", key).removeprefix(PEFT_PREFIX))
    return match["module"] if match else placement.module


def _is_parameter(placement: Placement) -> bool:
    """Whether a layer is of a parameter that is targeted by its own name, which its tensors do not have."""
    return _configured_name(_module_of(placement)) != _COMPILED.sub("", placement.module)


def _beside(placements: Iterable[Placement]) -> dict[Placement, Placement]:
    """Return parameters of one module under one ".base_layer" for each that PEFT wraps around the module later."""
    same = {placement: placement for placement in placements}
    modules: dict[str, dict[str, list[Placement]]] = {}
    for placement in same:
        if _is_parameter(placement):
            owner, _, name = placement.module.rpartition(".")
            modules.setdefault(owner, {}).setdefault(name, []).append(placement)
    for parameters in modules.values():
        for depth, name in enumerate(sorted(parameters, key=order_in_module, reverse=True)):
            for placement in parameters[name]:
                keys = tuple(_NESTED.sub(".base_layer" * depth + r"\g<factor>", key) for key in placement.keys)
                same[placement] = replace(placement, keys=keys)
    return same


PEFT = Format(
    name="peft",
    title="PEFT's format",
    factors="PEFT's lora_A and lora_B",
    files=(_WEIGHTS, _CONFIG),
    documented=Documented(
        writers="PEFT, and the trainers built on it",
        layout="`adapter_model.safetensors` with `base_model.model.<module>.lora_A.weight` (r, in) and "
        "`.lora_B.weight` (out, r), and `adapter_config.json` beside it; also adapters of type LOHA, LOKR, ADALORA, "
        "VERA and, with the base model, IA3, which are written as LORA",
        scale="lora_alpha/r, or lora_alpha/√r under use_rslora, with the rank and alpha patterns of the configuration; "
        "alpha/r of LOHA and LOKR, lora_alpha/(init_r + 1e-5) of ADALORA, 1 of VERA",
        source="PEFT, `tuners/lora/layer.py`, `update_layer`",
    ),
    recognises=_recognises,
    read=_read,
    place=_place,
    place_parameter=_place_parameter,
    embeddings=True,
    beside=_beside,
    headers=_headers,
    metadata=lambda _: {"format": "pt"},
)
