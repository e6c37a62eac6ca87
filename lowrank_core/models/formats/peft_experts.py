"""Parameters that PEFT targets by name (target_parameters): factors of one module that stack those of many experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_core.models.files.tensors import StoredTensor, describe_shape
from lowrank_core.models.formats.adapter import AdapterLayer, Placement, both_factors
from lowrank_core.models.formats.experts import expert_layers
from lowrank_core.models.formats.format import StoredScale
from lowrank_core.models.formats.peft_config import PeftConfig, as_names

_SEPARATE = re.compile(r"(?s)(?P<owner>.*\bexperts)\.(?P<expert>\d+)\.(?P<leaf>.+)")
_NESTING = re.compile(r"(\.base_layer)+$")
# Modules of transformers define their parameters in this order, and PEFT wraps them in it, the first innermost.
_ORDER = (
    *("gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj", "down_proj", "down_proj_bias"),
    *("w13", "w1", "v1", "w2", "w3", "wi", "wi_0", "wi_1", "wo", "fc1", "fc2"),
)
TRANSPOSED_EXPERTS = ("gpt_oss", "openai_privacy_filter", "aria")
"""Model types of transformers whose experts have is_transposed: weights of (experts, in, out)."""

_TRANSPOSED_BASES = (*TRANSPOSED_EXPERTS, "gpt-oss", "openai-privacy-filter")
# From this version on, PEFT asks for is_transposed; before, it took the weights of all experts as (in, out).
_ASKS_SINCE = (0, 19, 1)


def without_nesting(module: str) -> str:
    """Return a module's name without the ".base_layer" at its end, one for each further parameter of the module."""
    return _NESTING.sub("", module)


def targeted_parameters(modules: Mapping[str, int], config: PeftConfig) -> dict[str, str]:
    """Return the full name of the parameter that each module's factors are for, where they are for one.

    `modules` are names with the rows of their A. An empty name says that the module has other parameters than
    factors, so that which are which is unknown.
    """
    targets = as_names(config.raw.get("target_parameters"))
    if not targets:
        return {}
    owned: dict[str, set[str]] = {}
    for target in targets:
        owner, _, name = target.rpartition(".")
        owned.setdefault(owner, set()).add(name)
    targeted = config.raw.get("target_modules")
    ordinary = set(targeted) if isinstance(targeted, list) else None

    def is_ordinary(module: str) -> bool:
        # Of a regular expression, the rank of the factors says which modules it matched.
        if ordinary is None:
            return modules.get(module) == config.rank_of(module)
        return not ordinary.isdisjoint(_ends(module))

    nested: dict[str, list[str]] = {}
    for module in modules:
        nested.setdefault(without_nesting(module), []).append(module)
    parameters: dict[str, str] = {}
    for base, levels in nested.items():
        found = {name for end in _ends(base) for name in owned.get(end, ())}
        if "" in owned and not is_ordinary(base):
            found |= owned[""]
        names = sorted(found, key=order_in_module)
        if names:
            known = len(names) == len(levels)
            innermost_first = sorted(levels, key=len, reverse=True)
            full = [f"{base}.{name}" for name in names] if known else [""] * len(levels)
            parameters |= zip(innermost_first, full, strict=True)
    return parameters


def read_experts(
    module: str, parameter: str, tensors: Mapping[str, StoredTensor], names: tuple[str, str], config: PeftConfig
) -> list[AdapterLayer]:
    """Return a layer for each expert of a parameter; one alone where it has no axis of experts."""
    if not parameter:
        raise ValueError(
            f"{module!r} has factors for parameters, and target_parameters names another number of them: which are "
            "which is not in the file. Name each with its module, as 'mlp.experts.down_proj'"
        )
    A, B = both_factors(module, tensors, names)
    rank, rows = config.rank_of(parameter), A.shape[0]
    if B.shape[1] != rows or rows % rank:
        raise ValueError(
            f"the factors of {parameter!r} are A of {describe_shape(A.shape)} and B of {describe_shape(B.shape)}: "
            f"experts of rank {rank}, as the configuration has it, need rows of A and columns of B that are one "
            f"multiple of {rank}"
        )
    experts = rows // rank
    alpha, source = config.alpha_of(parameter)
    stack = AdapterLayer(
        placement=Placement(
            "peft", parameter.removesuffix(".weight"), parameter, (A.key, B.key), (B.shape[0], A.shape[1])
        ),
        rank=rank,
        alpha=alpha,
        rule=config.rule,
        scaling=config.scaling(alpha, rank),
        scaling_source=config.describe_scale(alpha, source, rank, "of each expert"),
        tensors=(B, A),
        transposed=experts > 1 and _are_stored_transposed(config),
    )
    if experts == 1:
        return [stack]
    return expert_layers(
        stack,
        experts,
        lambda expert: (B.along(1, expert, rows, experts), A.along(0, expert * rank, (expert + 1) * rank)),
    )


def experts_warnings(parameters: Iterable[str], config: PeftConfig) -> list[str]:
    """Return what a user of factors for such parameters should know."""
    names = sorted(filter(None, parameters))
    known = {name.rpartition(".")[2] for name in names}.issubset({*_ORDER, "weight"})
    by_module = {name.rpartition(".")[0] for name in names}
    warnings = []
    if len(by_module) < len(names) and not known:
        warnings.append(
            f"which of a module's parameters a factor is for depends on their order in the model, which is not in the "
            f"file: names as {names[0]!r} are in alphabetical order"
        )
    if names and _asks_not(config) and not _has_transposed_base(config):
        warnings.append(
            f"target_parameters of PEFT before {'.'.join(map(str, _ASKS_SINCE))}: it took the weights of all experts "
            "as (experts, in, out). Where the base has them as (experts, out, in), later versions refuse the factors, "
            "or apply their transpose"
        )
    return warnings


def is_separate_expert(module: str) -> bool:
    """Whether a module is one of several experts by its name, "mlp.experts.3.up_proj"."""
    return _SEPARATE.fullmatch(module) is not None


def separate_experts_warnings(scales: Mapping[str, StoredScale], config: PeftConfig) -> list[str]:
    """Return what a user should know of experts that are modules of their own, which PEFT stacks for transformers 5."""
    matches = {module: match for module in scales if (match := _SEPARATE.fullmatch(module))}
    if not matches:
        return []
    owners, leaves = ({match[part] for match in matches.values()} for part in ("owner", "leaf"))
    expected = len(owners) * len(leaves) * (1 + max(int(match["expert"]) for match in matches.values()))
    routers = sorted({f"{owner.removesuffix('experts')}gate" for owner in owners} & scales.keys())
    common = (config.r, config.lora_alpha)
    others = [module for module in (*matches, *routers) if (scales[module].rank, scales[module].alpha) != common]
    reasons = [f"{len(others)} have others than r and lora_alpha, as {others[0]!r}"] if others else []
    if len(matches) < expected:
        reasons.append(f"{expected - len(matches)} have none")
    warning = (
        "PEFT stacks the factors of separate experts for transformers 5, and fails unless all experts have factors, "
        f"and these and their routers one rank and alpha. Of {expected + len(routers)} modules "
        f"{', and '.join(reasons)}. Uniform ranks (--uniform) pad factors to one rank; of checkpoints that have the "
        "experts stacked, parameters are written, which need neither"
    )
    return [warning] if reasons else []


def experts_settings(model_type: str, architecture: str) -> dict[str, Any]:
    """Return what a configuration says of stacks of experts: by which version's rules, and which class has them."""
    settings: dict[str, Any] = {"peft_version": ".".join(map(str, _ASKS_SINCE))}
    if model_type in TRANSPOSED_EXPERTS:
        library = f"transformers.models.{model_type}.modeling_{model_type}"
        settings["auto_mapping"] = {"base_model_class": architecture, "parent_library": library}
    return settings


def _ends(name: str) -> list[str]:
    """Return a dotted name, and its ends after each dot."""
    return [name, *(name[place + 1 :] for place, character in enumerate(name) if character == ".")]


def order_in_module(name: str) -> tuple[int, str]:
    """Return the place of a parameter's own name among those of its module."""
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _are_stored_transposed(config: PeftConfig) -> bool:
    return _asks_not(config) or _has_transposed_base(config)


def _has_transposed_base(config: PeftConfig) -> bool:
    mapping = config.raw.get("auto_mapping")
    module = mapping.get("parent_library") if isinstance(mapping, dict) else ""
    where = f"{module} {config.raw.get('base_model_name_or_path')}".lower()
    return any(base in where for base in _TRANSPOSED_BASES)


def _asks_not(config: PeftConfig) -> bool:
    """Whether the adapter is of a version of PEFT that does not ask for is_transposed; the first wrote no version."""
    numbers = re.findall(r"\d+", str(config.raw.get("peft_version") or "0"))
    return tuple(map(int, numbers[:3])) < _ASKS_SINCE
