"""PEFT's configuration: read, and written so that each layer gets exactly its rank and its alpha."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_core.models.formats.format import applied_scale
from lowrank_core.models.formats.patterns import ModulePatterns

_OTHER_PRODUCTS = {
    "use_qalora": "QA-LoRA pools the input before A",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA puts a diagonal between the factors and truncates the base",
}
READ_TYPES = "LORA, LOHA, LOKR, ADALORA, VERA and, with its base model, IA3"
"""PEFT's types of adapters that are read, for messages."""
_PROMPTS = "soft prompts, which change no weight"
_ROTATION = "a rotation of the base's weight, which depends on it"
# Why the adapters of these types are not read.
_UNREAD = {
    "OFT": _ROTATION,
    "BOFT": _ROTATION,
    "HRA": "reflections of the base's weight, which depend on it",
    "GLORA": "an update that depends on the base's weight",
    "HIRA": "the base's weight times a product, entry by entry, which depends on it",
    "DELORA": "a product whose scale depends on the norms of the base's weight",
    "MISS": "blocks that are repeated over the weight",
    "RANDLORA": "sums of products of random bases, which are not in the file",
    "C3A": "circulant blocks",
    "FOURIERFT": "Fourier coefficients, whose frequencies are not in the file",
    "SHIRA": "sparse entries of the weight",
    "GRALORA": "products of blocks of the weight",
    "VBLORA": "products of vectors from a shared bank",
    "TRAINABLE_TOKENS": "rows of an embedding trained in full",
    "LN_TUNING": "norms trained in full",
} | dict.fromkeys(("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"), _PROMPTS)
# What another set of layers, ranks or factors makes void; everything else in a configuration is kept.
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
}


@dataclass(frozen=True)
class PeftConfig:
    """What decides the scale of each layer; ranks and alphas by pattern are in the file's order."""

    r: int
    lora_alpha: float
    rank_pattern: ModulePatterns[int]
    alpha_pattern: ModulePatterns[float]
    use_rslora: bool
    fan_in_fan_out: bool
    raw: dict[str, Any]

    @property
    def rule(self) -> str:
        """The scaling rule, "rslora" or "standard"."""
        return "rslora" if self.use_rslora else "standard"

    def rank_of(self, module: str) -> int:
        """Return PEFT's rank of a module, whose name is without "base_model.model."."""
        return next(iter(self.rank_pattern.matching(module).values()), self.r)

    def scaling(self, alpha: float, rank: int) -> float:
        """Return the scale that PEFT applies: 0 and negative alphas are data."""
        return applied_scale(alpha, self.rule, rank)

    def alpha_of(self, module: str) -> tuple[float, str]:
        """Return PEFT's alpha of a module, and the entry that it came from."""
        for key, alpha in self.alpha_pattern.matching(module).items():
            return alpha, f"alpha_pattern {key!r}"
        return self.lora_alpha, "lora_alpha" if "lora_alpha" in self.raw else "PEFT's default, lora_alpha is not given"

    def describe_scale(self, alpha: float, source: str, rank: int, factor: str) -> str:
        """Return where a scale came from: the alpha and its entry, and the rank of a factor."""
        divisor = f"sqrt(rank {rank} ({factor})), use_rslora" if self.use_rslora else f"rank {rank} ({factor})"
        return f"alpha {alpha:g} ({source}) / {divisor}"


def check_peft_config(path: Path, raw: dict[str, Any]) -> PeftConfig:
    """Return a configuration whose entries are known to be of the right types; `path` is for messages.

    PEFT's defaults replace what is missing.
    """
    if raw.get("peft_type") != "LORA":
        given = f"peft_type {raw['peft_type']!r}" if "peft_type" in raw else "no peft_type"
        why = _UNREAD.get(str(raw.get("peft_type")), "which is not known")
        raise ValueError(f"{str(path)!r} has {given}, {why}: {READ_TYPES} are read")
    for key, how in _OTHER_PRODUCTS.items():
        if raw.get(key):
            raise ValueError(f"{str(path)!r} sets {key}: {how}, so the update is not γBA and cannot be read")
    for key in ("modules_to_save", "target_parameters"):
        _entry(path, raw, key, None, as_names)
    return PeftConfig(
        r=_entry(path, raw, "r", 8, _as_rank),
        lora_alpha=_entry(path, raw, "lora_alpha", 8, _as_alpha),
        rank_pattern=_pattern_entry(path, raw, "rank_pattern", _as_rank),
        alpha_pattern=_pattern_entry(path, raw, "alpha_pattern", _as_alpha),
        use_rslora=_entry(path, raw, "use_rslora", None, _as_flag),
        fan_in_fan_out=_entry(path, raw, "fan_in_fan_out", None, _as_flag),
        raw=raw,
    )


def lora_config(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    use_rslora: bool = False,
    parameters: Collection[str] = (),
    others: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the configuration in which PEFT finds each module's rank and alpha, beside the settings to keep.

    The commonest rank and alpha are ``r`` and ``lora_alpha``, and the other layers have patterns of their own: ``'^'``
    and the escaped full name, the one form that matches nothing else. `parameters` are those of the names that are
    parameters' own, and `others` are modules that no layer is for.
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
        "target_modules": _targets(sorted(ranks.keys() - set(parameters)), set(others) - ranks.keys()),
        **({"target_parameters": sorted(parameters)} if parameters else {}),
    }


def as_names(value: Any) -> list[str]:
    """Return a configuration's list of module names, empty where it is null."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of module names is needed")
    return value


def trained_rows(name: str, count: int, raw: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Return the base's name of an embedding of which rows were trained in full, and which; nothing where unknown."""
    module, found, _ = name.partition(".token_adapter.")
    indices = raw.get("trainable_token_indices")
    if isinstance(indices, dict):
        indices = next((each for target, each in indices.items() if f".{module}".endswith(f".{target}")), None)
    rows = [row for row in indices if isinstance(row, int) and row >= 0] if isinstance(indices, list) else []
    return (f"{module}.weight", tuple(rows)) if found and len(rows) == count else ("", ())


def meaning_in_full(name: str, saved: Iterable[str]) -> str:
    """Return what a tensor is that takes the place of the base's of its name; empty for any other."""
    if any(f".{module}." in f".{name}" for module in saved):
        return "trained in full (modules_to_save), the tensor itself and not its change"
    if name.endswith(".bias"):
        return "trained bias, the tensor itself and not its change"
    if name.endswith(".weight") and ".lora_" not in name:
        return "saved in full, the tensor itself and not its change"
    return ""


def _commonest_and_others(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {"^" + re.escape(name): value for name, value in sorted(values.items()) if value != common}


def _targets(names: list[str], others: Collection[str]) -> list[str] | str:
    # PEFT takes a name in a list for the end of one too: "proj" would reach "block.proj", which has no factors.
    reached = any(other.endswith(f".{name}") for name in names for other in others)
    return "|".join(re.escape(name) for name in names) if reached else names


def _plain(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def _entry(path: Path, raw: Mapping[str, Any], key: str, default: Any, convert: Callable[[Any], Any]) -> Any:
    try:
        return convert(raw.get(key, default))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} has {key} {raw[key]!r}: {error}") from error


def _pattern_entry(path: Path, raw: Mapping[str, Any], key: str, convert: Callable[[Any], Any]) -> ModulePatterns[Any]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        message = f"{str(path)!r} has {key} {patterns!r}: an object of patterns and their values is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    values = {pattern: _entry(path, patterns, pattern, None, convert) for pattern in patterns}
    try:
        return ModulePatterns(values)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} has {key} {error}") from error


def _as_rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a rank is a whole number, at least 1")
    return value


def _as_alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**1023:
        raise ValueError("alpha is a finite number")
    return float(value)


def _as_flag(value: Any) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        message = "true or false is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    return value
