"""The configuration that makes PEFT give each layer exactly its rank and its alpha."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# What another set of layers, ranks or factors makes void; everything else in a configuration stays.
_REPLACED: dict[str, Any] = {
    "init_lora_weights": True,
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "target_parameters": None,
    "loftq_config": {},
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "inference_mode": True,
}


def peft_config(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    use_rslora: bool = False,
    others: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    r"""
    Write the configuration that gives each layer its rank and its alpha in PEFT.

    Parameters
    ----------
    ranks : mapping of str to int
        The rank of each module, at least 1, by its name in the base model.
    alphas : mapping of str to float
        The alpha of each of the same modules.
    use_rslora : bool
        Whether the scale is α/√r rather than α/r.
    others : iterable of str
        Modules of the base model that no layer is for.
    settings : mapping, optional
        Entries to keep, as an adapter's own configuration; what names layers, ranks and scales is replaced.

    Returns
    -------
    dict
        What adapter_config.json holds, or ``peft.LoraConfig(**config)`` takes, less ``peft_type``.

    Notes
    -----
    The commonest rank and alpha are ``r`` and ``lora_alpha``, and the other layers have patterns of their own:
    ``'^'`` and the escaped full name, the one form that matches nothing else.

    Examples
    --------
    >>> from lowrank_core.models.formats.peft_configuration import peft_config
    >>> config = peft_config({"a.q": 4, "a.k": 4, "a.v": 8}, {"a.q": 16, "a.k": 16, "a.v": 16})
    >>> config["r"], config["lora_alpha"], config["rank_pattern"], config["target_modules"]
    (4, 16, {'^a\\.v': 8}, ['a.k', 'a.q', 'a.v'])
    """
    r, rank_pattern = _commonest_and_others(ranks)
    alpha, alpha_pattern = _commonest_and_others({name: _plain(alphas[name]) for name in ranks})
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        **(settings or {}),
        **{name: value for name, value in _REPLACED.items() if name in (settings or {})},
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": use_rslora,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": _targets(sorted(ranks), set(others) - ranks.keys()),
    }


def _commonest_and_others(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {"^" + re.escape(name): value for name, value in sorted(values.items()) if value != common}


def _targets(names: list[str], others: Collection[str]) -> list[str] | str:
    # PEFT takes a name in a list for the end of one too: "proj" would reach "block.proj", which has no factors.
    reached = any(other.endswith(f".{name}") for name in names for other in others)
    return "|".join(re.escape(name) for name in names) if reached else names


def _plain(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else float(alpha)
