"""Folders of models: which of their files has the weights, and the components of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lowrank_core.models.files.recognition import explain_missing

__all__ = [
    "MODEL_FILES",
    "PIPELINE",
    "WEIGHTS",
    "component_folder",
    "find_components",
    "find_weights",
    "is_model_folder",
    "is_pipeline",
]

PIPELINE = "model_index.json"
"""What a folder has in which diffusers saved a pipeline."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")
"""How the names of files with weights end, or of their index."""

MODEL_FILES = (*WEIGHTS, PIPELINE, "config.json")
"""How the names of files end that a model or an adapter is read from."""

_INDEX = ".index.json"
_MODELS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_OTHER_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
# What a trainer saves beside the weights.
_OF_TRAINING = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)\.(bin|pt)|rng_state\S*\.pth")
# Variants of diffusers and transformers: a second copy of the weights, in a dtype that its name says.
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8|non_ema|ema)(?=\.)")


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is that of a pipeline, with a model in each of several folders."""
    return (folder / PIPELINE).is_file()


def is_model_folder(folder: Path) -> bool:
    """Whether a folder has the files that transformers or diffusers names a model's, or those of a pipeline."""
    named = any((folder / f"{stem}{suffix}").is_file() for stem, suffix in _MODELS)
    return named or any(folder.glob(f"*{_INDEX}")) or is_pipeline(folder)


def find_components(folder: Path) -> dict[str, Path]:
    """Return the weights of each component of a pipeline that has any, by its name."""
    components = {}
    for child in sorted(child for child in folder.iterdir() if child.is_dir()):
        try:
            components[child.name] = find_weights(child)
        except FileNotFoundError:  # a tokenizer, or a scheduler
            continue
    if not components:
        raise FileNotFoundError(f"{str(folder)!r} is a pipeline without any weights: the download is incomplete")
    return components


def component_folder(folder: Path, component: str) -> Path:
    """Return the folder of one component of a pipeline."""
    if not folder.exists():
        raise explain_missing(folder)
    if not is_pipeline(folder):
        raise ValueError(
            f"{str(folder)!r} is not a pipeline: a component (--component) is one of the models in the folder of a "
            f"pipeline, which has {PIPELINE}"
        )
    components = find_components(folder)
    if component not in components:
        raise ValueError(
            f"{component!r} is not a component of {str(folder)!r} with weights: {', '.join(components)} are"
        )
    return folder / component


def find_weights(folder: Path) -> Path:
    """Return the one file, or index of shards, that has the weights of a model's folder."""
    for name in (f"{stem}{ending}" for stem, suffix in _MODELS for ending in (suffix, suffix + _INDEX)):
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.is_file() and not _OF_TRAINING.fullmatch(file.name))
    for endings in ((".safetensors" + _INDEX,), (".safetensors",), (".bin" + _INDEX,), _OTHER_SUFFIXES):
        candidates = _without_variants([file for file in files if _VARIANT.sub("", file.name).endswith(endings)])
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(file.name for file in candidates)
            raise ValueError(f"{str(folder)!r} has several checkpoints ({names}): give the path of one of them")
    raise FileNotFoundError(
        f"no model.safetensors and no model.safetensors{_INDEX} in {str(folder)!r}, nor any other weights: give a "
        "safetensors, GGUF or PyTorch file, the index of a sharded checkpoint, or the folder of one of these"
    )


def _without_variants(files: Sequence[Path]) -> list[Path]:
    """Return files without those that are a variant of another."""
    names = {file.name for file in files}
    return [file for file in files if _VARIANT.sub("", file.name) not in names - {file.name}]
