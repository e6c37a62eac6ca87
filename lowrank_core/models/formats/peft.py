"""PEFT's adapters: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_core import scaling_rule
from lowrank_core.models.files.json_file import read_json
from lowrank_core.models.files.tensors import StoredTensor, as_matrix
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, OtherTensor, both_factors, count_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(\.weight)?")
_ALTERS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OTHER_PRODUCTS = {
    "use_qalora": "QA-LoRA pools the input before A",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA puts a diagonal between the factors and truncates the base",
}
_LORA_BIAS = ".lora_B.bias"
_EXPERTS = (
    "its factors stack several experts (target_parameters), and how many is not in the file: the update is not one "
    "product γBA"
)


@dataclass(frozen=True)
class PeftConfig:
    """
    What decides the scale of each layer in a PEFT configuration.

    Attributes
    ----------
    r : int
        The rank, where no pattern says otherwise.
    lora_alpha : float
        Alpha, where no pattern says otherwise.
    rank_pattern, alpha_pattern : dict
        Ranks and alphas by pattern on module names, in the file's order.
    use_rslora : bool
        Whether the scale is α/√r rather than α/r.
    fan_in_fan_out : bool
        Whether weights are stored as (in, out).
    raw : dict
        The whole configuration.
    """

    r: int
    lora_alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    fan_in_fan_out: bool
    raw: dict[str, Any]

    @property
    def rule(self) -> str:
        """The scaling rule, "rslora" or "standard"."""
        return "rslora" if self.use_rslora else "standard"

    def rank_of(self, module: str) -> int:
        """
        Rank that PEFT gives to a module.

        Parameters
        ----------
        module : str
            The module's name, without "base_model.model.".

        Returns
        -------
        int
            From the first pattern that matches, else `r`.
        """
        return self.rank_pattern.get(pattern_key(self.rank_pattern, module), self.r)

    def alpha_of(self, module: str) -> tuple[float, str]:
        """
        Alpha that PEFT gives to a module, and where it came from.

        Parameters
        ----------
        module : str
            The module's name, without "base_model.model.".

        Returns
        -------
        alpha : float
            From the first pattern that matches, else `lora_alpha`.
        source : str
            The configuration's entry.
        """
        key = pattern_key(self.alpha_pattern, module)
        if key in self.alpha_pattern:
            return self.alpha_pattern[key], f"alpha_pattern {key!r}"
        return self.lora_alpha, "lora_alpha" if "lora_alpha" in self.raw else "PEFT's default, lora_alpha is not given"


def pattern_key(patterns: Iterable[str], module: str) -> str:
    """
    Find the pattern that PEFT applies to a module: the first, in order, that matches the end of its name.

    Parameters
    ----------
    patterns : iterable of str
        The keys of a rank_pattern or alpha_pattern, regular expressions all.
    module : str
        The module's name, without "base_model.model.".

    Returns
    -------
    str
        The pattern, or the module's own name where none matches, as ``peft.utils.other.get_pattern_key`` does.

    Examples
    --------
    >>> from lowrank_core.models.formats.peft import pattern_key
    >>> pattern_key(["^q_proj", "q_proj"], "layers.11.self_attn.q_proj")
    'q_proj'
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def read_peft_config(path: Path) -> PeftConfig:
    """
    Read and check the configuration of a PEFT adapter.

    Parameters
    ----------
    path : Path
        An adapter_config.json.

    Returns
    -------
    PeftConfig
        With PEFT's defaults (r = 8, lora_alpha = 8) where an entry is missing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not that of a LoRA adapter, or an entry has the wrong type.
    """
    return check_peft_config(path, read_json(path))


def check_peft_config(path: Path, raw: dict[str, Any]) -> PeftConfig:
    """
    Check the content of a PEFT adapter's configuration.

    Parameters
    ----------
    path : Path
        Where it is, or will be.
    raw : dict
        What the file holds.

    Returns
    -------
    PeftConfig
        As :func:`read_peft_config` gives it.

    Raises
    ------
    ValueError
        If it is not that of a LoRA adapter, or an entry has the wrong type.
    """
    if raw.get("peft_type") != "LORA":
        found = f"peft_type {raw['peft_type']!r}" if "peft_type" in raw else "no peft_type"
        raise ValueError(f"{str(path)!r} has {found}: only LoRA adapters (peft_type 'LORA') hold an update γBA")
    for key, how in _OTHER_PRODUCTS.items():
        if raw.get(key):
            raise ValueError(f"{str(path)!r} sets {key}: {how}, so the update is not γBA and cannot be read")
    for key in ("modules_to_save", "target_parameters"):
        _entry(path, raw, key, None, _as_names)
    return PeftConfig(
        r=_entry(path, raw, "r", 8, _as_rank),
        lora_alpha=_entry(path, raw, "lora_alpha", 8, _as_alpha),
        rank_pattern=_pattern_entry(path, raw, "rank_pattern", _as_rank),
        alpha_pattern=_pattern_entry(path, raw, "alpha_pattern", _as_alpha),
        use_rslora=_entry(path, raw, "use_rslora", False, _as_flag),
        fan_in_fan_out=_entry(path, raw, "fan_in_fan_out", False, _as_flag),
        raw=raw,
    )


def is_peft(keys: Iterable[str]) -> bool:
    """
    Recognise PEFT's LoRA by the names of its tensors.

    Parameters
    ----------
    keys : iterable of str
        The names of all tensors in a file.

    Returns
    -------
    bool
        Whether one of them is a lora_A or lora_B.
    """
    return any(_FACTOR.fullmatch(key) for key in keys)


def open_peft(path: Path, tensors: Mapping[str, StoredTensor], config: PeftConfig) -> Adapter:
    """
    Sort the tensors of a PEFT adapter into layers with their scales, and all others.

    Parameters
    ----------
    path : Path
        The safetensors file.
    tensors : mapping of str to StoredTensor
        Its tensors by name.
    config : PeftConfig
        Its configuration.

    Returns
    -------
    Adapter
        Nothing is read yet.

    Raises
    ------
    ValueError
        If there are no factors, one is without its partner, or ranks disagree.
    """
    factors: dict[str, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match["module"], {})[match["factor"]] = tensor
        else:
            rest[name] = tensor
    if not factors:
        raise ValueError(
            f"{str(path)!r} holds no LoRA factors: no tensor of it is a lora_A or lora_B as PEFT names them"
        )
    layers = {module: _layer(module, found, config) for module, found in sorted(factors.items())}
    stacked = [module for module, layer in layers.items() if _is_expert_stack(module, layer, config)]
    plain = {module: layer for module, layer in layers.items() if module not in stacked}
    initialisation = _altered_base(config)
    doubts = (*_invocation_warnings(config), *_pattern_warnings(plain, config))
    return Adapter(
        path=path,
        kind="peft",
        layers=tuple(plain.values()),
        unsupported=dict.fromkeys((layers[module].name for module in stacked), _EXPERTS),
        others=tuple(
            OtherTensor(tensor, name, _meaning(name, config), _bias_scaling(name, layers))
            for name, tensor in rest.items()
        ),
        warnings=(
            *_base_warnings(initialisation, config),
            *doubts,
            *_reader_warnings(list(plain.values()), config),
        ),
        initialisation=initialisation,
        doubts=doubts,
    )


def _layer(module: str, found: Mapping[str, StoredTensor], config: PeftConfig) -> AdapterLayer:
    embedding = any(name.startswith("lora_embedding") for name in found)
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    A, B = both_factors(module, found, names)
    rank = A.shape[0]
    alpha, source = config.alpha_of(_matched_name(module))
    divisor = f"sqrt(rank {rank} ({names[0]})), use_rslora" if config.use_rslora else f"rank {rank} ({names[0]})"
    m, n = B.shape[0], as_matrix(A.shape)[1]
    # An embedding's weight is (vocabulary, dim); a convolution's is never stored as (in, out).
    transposed = embedding or (config.fan_in_fan_out and len(A.shape) == 2)
    return AdapterLayer(
        name=_layer_name(module),
        shape=(n, m) if transposed else (m, n),
        rank=rank,
        alpha=alpha,
        rule=config.rule,
        scaling=float(scaling_rule(config.rule)(alpha, rank)),
        scaling_source=f"alpha {alpha:g} ({source}) / {divisor}",
        A=A,
        B=B,
        transposed=transposed,
        groups=count_groups(module, A, B, config.rank_of(_matched_name(module))),
    )


def _layer_name(module: str) -> str:
    # The inner projection of torch.nn.MultiheadAttention is saved as "mha.base_layer.out_proj".
    return module.replace(".base_layer.", ".")


def _matched_name(module: str) -> str:
    # What PEFT holds patterns against: of a layer within a wrapped one, the name of the outer.
    return module.partition(".base_layer")[0]


def _is_expert_stack(module: str, layer: AdapterLayer, config: PeftConfig) -> bool:
    owners = [name.rpartition(".")[0] for name in _as_names(config.raw.get("target_parameters"))]
    name = _matched_name(module)
    return layer.rank != config.rank_of(name) and any(f".{name}".endswith(f".{owner}") for owner in owners)


def _meaning(name: str, config: PeftConfig) -> str:
    saved = _as_names(config.raw.get("modules_to_save"))
    meanings = (
        ("lora_magnitude_vector" in name, "DoRA magnitudes, which rescale each row of base plus update"),
        (name.endswith(_LORA_BIAS), "bias of lora_B, times the layer's scale"),
        ("trainable_tokens" in name, "rows of an embedding trained in full (trainable_token_indices)"),
        (
            any(f".{target}." in f".{name}" for target in saved),
            "trained in full (modules_to_save), the tensor itself and not its change",
        ),
        (name.endswith(".bias"), "trained bias, the tensor itself and not its change"),
        (name.endswith(".weight") and ".lora_" not in name, "saved in full, the tensor itself and not its change"),
    )
    return next((meaning for applies, meaning in meanings if applies), "unknown to LoRA")


def _bias_scaling(name: str, layers: Mapping[str, AdapterLayer]) -> float:
    module = name.removesuffix(_LORA_BIAS)
    return layers[module].scaling if module != name and module in layers else 1.0


def _altered_base(config: PeftConfig) -> str | None:
    initialisation = config.raw.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower().startswith(_ALTERS_BASE):
        return initialisation
    return None


def _base_warnings(initialisation: str | None, config: PeftConfig) -> Iterator[str]:
    if initialisation is not None:
        yield (
            f"init_lora_weights {initialisation!r} altered the base when training began: γBA is added to that altered "
            "base, and is not the update of the original one. Convert it with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) to get an adapter that stands alone"
        )
    if config.raw.get("use_dora"):
        yield "use_dora: the update is m·(W + γBA)/‖W + γBA‖ − W, which is not low-rank; the figures are of γBA alone"


def _invocation_warnings(config: PeftConfig) -> Iterator[str]:
    if config.raw.get("alora_invocation_tokens"):
        yield "alora_invocation_tokens: the update is applied only to the tokens that follow the invocation"


def _pattern_warnings(layers: Mapping[str, AdapterLayer], config: PeftConfig) -> Iterator[str]:
    unloadable = [module for module, layer in layers.items() if layer.rank != config.rank_of(_matched_name(module))]
    if unloadable:
        first = layers[unloadable[0]]
        yield (
            f"{len(unloadable)} of {len(layers)} layers have another rank in their factors than in {PEFT_CONFIG}, as "
            f"{first.name!r} with {first.rank} and {config.rank_of(_matched_name(unloadable[0]))}: PEFT refuses to "
            "load them; the scales given here divide by the rank of the factors"
        )
    ambiguous = [module for module in layers if len(set(_matching_alphas(module, config).values())) > 1]
    if ambiguous:
        found = ", ".join(f"{key!r}: {alpha:g}" for key, alpha in _matching_alphas(ambiguous[0], config).items())
        yield (
            f"{len(ambiguous)} of {len(layers)} layers match several alpha patterns, as {layers[ambiguous[0]].name!r} "
            f"({found}): PEFT takes the first in the file, and sorts them when it saves, so training may have taken "
            "another. Write each as '^' and the escaped full name"
        )


def _matching_alphas(module: str, config: PeftConfig) -> dict[str, float]:
    name = _matched_name(module)
    return {key: alpha for key, alpha in config.alpha_pattern.items() if pattern_key([key], name) == key}


def _reader_warnings(layers: list[AdapterLayer], config: PeftConfig) -> Iterator[str]:
    single = float(scaling_rule(config.rule)(config.lora_alpha, config.r))
    readers: tuple[tuple[str, Callable[[AdapterLayer], float]], ...] = (
        ("llama.cpp applies lora_alpha over each tensor's own rank", lambda layer: config.lora_alpha / layer.rank),
        ("readers of a single scale (older vLLM) apply that of r and lora_alpha to every layer", lambda _: single),
        ("readers that do not know use_rslora apply α/r", lambda layer: layer.alpha / layer.rank),
    )
    for claim, scale in readers:
        wrong = [layer for layer in layers if not math.isclose(scale(layer), layer.scaling, rel_tol=1e-9)]
        if wrong:
            yield (
                f"{claim}: a different scale in {len(wrong)} of {len(layers)} layers, as {scale(wrong[0]):.6g} instead "
                f"of {wrong[0].scaling:.6g} in {wrong[0].name!r}. Right in every reader: each B multiplied by its "
                "scale, all factors padded with zeros to one rank r, lora_alpha = r, no use_rslora, no patterns"
            )


def _entry(path: Path, raw: Mapping[str, Any], key: str, default: Any, convert: Any) -> Any:
    try:
        return convert(raw.get(key, default))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} has {key} {raw[key]!r}: {error}") from error


def _pattern_entry(path: Path, raw: Mapping[str, Any], key: str, convert: Any) -> dict[str, Any]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        message = f"{str(path)!r} has {key} {patterns!r}: an object of patterns and their values is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    for pattern in patterns:
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{str(path)!r} has {key} {pattern!r}, which is no regular expression ({error})"
            ) from error
    return {pattern: _entry(path, patterns, pattern, None, convert) for pattern in patterns}


def _as_rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a rank is a whole number, at least 1")
    return value


def _as_alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**1023:
        raise ValueError("alpha is a number, finite and positive")
    return float(value)


def _as_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        message = "true or false is needed"
        raise ValueError(message)  # noqa: TRY004 - the file's content is wrong, not the type of an argument
    return value


def _as_names(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of module names is needed")
    return value
