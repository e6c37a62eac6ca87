"""Adapters as files: which format a file is of, and which an output will be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from lowrank_core.models.files.checkpoints import Checkpoint
from lowrank_core.models.files.folders import is_model_folder
from lowrank_core.models.files.hub_cache import find_snapshot
from lowrank_core.models.files.in_memory import is_adapted, state_of, tensors_of
from lowrank_core.models.files.tensors import StoredTensor, open_file
from lowrank_core.models.formats.adapter import Adapter, AdapterLayer, OtherTensor, Placement
from lowrank_core.models.formats.diffusers import DIFFUSERS
from lowrank_core.models.formats.foreign import foreign_layout
from lowrank_core.models.formats.format import SINGLE_FILE, SUFFIXES, AdapterFile, Format
from lowrank_core.models.formats.gguf_adapter import GGUF_ADAPTER
from lowrank_core.models.formats.kohya import KOHYA
from lowrank_core.models.formats.lycoris import LYCORIS
from lowrank_core.models.formats.mlx import MLX
from lowrank_core.models.formats.old_diffusers import OLD_DIFFUSERS
from lowrank_core.models.formats.peft import PEFT
from lowrank_core.models.formats.peft_model import as_config, peft_state
from lowrank_core.models.formats.xlabs import XLABS
from lowrank_core.models.sources import Source, is_path, name_of

__all__ = [
    "FORMATS",
    "Adapter",
    "AdapterLayer",
    "Format",
    "OtherTensor",
    "Placement",
    "adapter_files",
    "format_named",
    "format_of_output",
    "holds_adapter",
    "is_adapter",
    "is_adapter_folder",
    "open_adapter",
]

# Each reads the layers whose names are its own and leaves the rest to those after it. kohya's names tell its layers
# whatever the file is called; lora_A and lora_B are PEFT's in a file with its name, and else diffusers'. The first that
# takes the layers of others is what the name of an output asks for.
FORMATS: tuple[Format, ...] = (KOHYA, PEFT, LYCORIS, DIFFUSERS, OLD_DIFFUSERS, XLABS, GGUF_ADAPTER, MLX)


def open_adapter(source: Source, *, config: Any = None) -> Adapter:
    """Open a LoRA adapter: read its configuration and the header of its file, but no factor.

    Parameters
    ----------
    source : path-like, mapping, model or Adapter
        An adapter's file, or its folder (or the folder above, if it contains one adapter alone), of any format that is
        read. The format is recognised from the content. Or an adapter in memory: a model of PEFT's, whose active
        adapter is taken, or a mapping of names to NumPy arrays or PyTorch tensors. They are neither copied nor
        modified.
    config : peft.PeftConfig or mapping, optional
        Of a mapping with PEFT's names: the configuration with alpha and the scaling rule, as
        ``model.peft_config["default"]`` or the content of adapter_config.json.

    Returns
    -------
    Adapter
        Its layers with their effective scales.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the adapter is of an unknown type, or damaged: a factor without its partner, ranks that disagree, an invalid
        configuration, a pickle; if the scale of one in memory cannot be known, or a tensor is sparse, on meta or on an
        accelerator.

    See Also
    --------
    lowrank_core.models.inspect : Report what is in an adapter.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from lowrank_core.models import open_adapter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     factors = {"base_model.model.proj.lora_A.weight": np.ones((2, 6), np.float32),
    ...                "base_model.model.proj.lora_B.weight": np.ones((4, 2), np.float32)}
    ...     save_file(factors, pathlib.Path(folder, "adapter_model.safetensors"))
    ...     config = '{"peft_type": "LORA", "r": 2, "lora_alpha": 8}'
    ...     _ = pathlib.Path(folder, "adapter_config.json").write_text(config)
    ...     layer = open_adapter(folder).layers[0]
    >>> layer.name, layer.shape, layer.scaling, layer.scaling_source
    ('proj', (4, 6), 4.0, 'alpha 8 (lora_alpha) / rank 2 (lora_A)')
    >>> open_adapter(factors, config={"peft_type": "LORA", "r": 2, "lora_alpha": 8}).layers[0].scaling
    4.0
    """
    if not is_path(source):
        return _open_in_memory(source, config)
    if config is not None:
        raise ValueError("a config is for an adapter in memory: one in files has its own beside the tensors")
    where = _locate(source)
    return _read(AdapterFile(where, *open_file(where)))


def _open_in_memory(source: Source, config: Any) -> Adapter:
    if isinstance(source, Adapter):
        return source
    if isinstance(source, Checkpoint):
        return _read(AdapterFile(source.path, source.tensors, {}, {}))
    if is_adapted(source):
        if config is not None:
            raise ValueError(f"{name_of(source)} has its adapter's configuration: leave config out")
        state, settings = peft_state(source)
    else:
        state, settings = state_of(source), {} if config is None else as_config(config)
    name = name_of(source)
    adapter = adapter_in_memory(name, tensors_of(state, name), {}, settings)
    unscaled = [layer for layer in adapter.layers if layer.placement.unscaled and adapter.format == DIFFUSERS.name]
    if unscaled:
        raise ValueError(
            f"{name} has {PEFT.factors} without an alpha, as {unscaled[0].tensors[0].key!r}, so that the scale of "
            "the update is unknown: alpha and the scaling rule are in PEFT's configuration. Give the model of PEFT's "
            "itself, or open_adapter(state_dict, config=model.peft_config['default'])"
        )
    return adapter


def adapter_in_memory(
    name: str, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str], config: Mapping[str, Any]
) -> Adapter:
    """Return the adapter that consists of tensors in memory, with the metadata and the configuration of its format."""
    return _read(AdapterFile(Path(name), tensors, dict(metadata), dict(config)))


def _read(file: AdapterFile) -> Adapter:
    """Read an adapter in whatever format its tensors are; none of them is read yet."""
    where = file.path
    parts = _read_parts(file)
    if parts:
        return replace(_together(parts), tensors=file.tensors)
    foreign = foreign_layout(file.tensors)
    if foreign:
        raise ValueError(f"{str(where)!r} {foreign}")
    example = f"its first tensor is {next(iter(file.tensors))!r}" if file.tensors else "it is empty"
    raise ValueError(
        f"{str(where)!r} contains no LoRA factors ({example}): neither "
        f"{', nor '.join(each.factors for each in FORMATS)}. To inspect a checkpoint, give the one that it was "
        "tuned from as its base"
    )


def _read_parts(file: AdapterFile) -> list[Adapter]:
    """Read what each format knows of a file; what the last of them leaves unread, none knows."""
    parts: list[Adapter] = []
    for each in FORMATS:
        if each.recognises(file):
            adapter = each.read(file)
            parts.append(adapter)
            file = file._replace(tensors=adapter.unread)
    return parts


def _together(parts: Sequence[Adapter]) -> Adapter:
    """Return the parts of one file as one adapter, whose format is that of most layers."""
    by_name: dict[str, AdapterLayer] = {}
    unsupported = {name: reason for part in parts for name, reason in part.unsupported.items()}
    for layer in (layer for part in parts for layer in part.layers):
        if by_name.setdefault(layer.name, layer) is not layer:
            unsupported[layer.tensors[0].key] = f"{layer.name!r} has another update in the file, and that alone is read"
    layers = [by_name[name] for name in sorted(by_name)]
    base_updates = tuple(update for part in parts for update in part.base_updates)
    main = max(parts, key=lambda part: len(part.layers))
    if not layers and not base_updates and unsupported:
        name, reason = next(iter(unsupported.items()))
        raise ValueError(
            f"no layer of {str(main.path)!r} can be read; the first of {len(unsupported)}, {name}: {reason}"
        )
    unknown = (OtherTensor(tensor, key, "unknown to LoRA") for key, tensor in parts[-1].unread.items())
    return replace(
        main,
        layers=tuple(layers),
        unsupported=unsupported,
        base_updates=base_updates,
        others=(*(other for part in parts for other in part.others), *unknown),
        unread={},
        warnings=tuple(warning for part in parts for warning in part.warnings),
        inherited_warnings=tuple(warning for part in parts for warning in part.inherited_warnings),
    )


def format_named(name: str) -> Format:
    """Return one of the formats."""
    return next(each for each in FORMATS if each.name == name)


def format_of_output(out: str | PathLike[str] | None, source: str | None = None, name: str | None = None) -> Format:
    """Return the format to write: the one that is named, else the source's if the path is named so, else the first.

    Without a source's own layers, only a format that takes those of others can be written. In memory, where `out` is
    None, it is the source's, or PEFT's.
    """
    path = None if out is None else Path(out)
    writable = [each for each in FORMATS if each.place or each.name == source]
    if name is not None:
        chosen = next((each for each in writable if each.name == name), None)
        if chosen is None:
            raise ValueError(
                f"format {name!r} cannot be written from this input: {', '.join(each.name for each in writable)} can"
            )
        if path is not None and not chosen.names_a(path):
            raise ValueError(f"{str(path)!r} does not name an output of the format {name!r}: {chosen.output}")
        return chosen
    if path is None:
        return next((each for each in writable if each.name == source), PEFT)
    fitting = [each for each in writable if each.names_a(path)]
    if not fitting:
        raise ValueError(
            f"{str(path)!r} names an output of {', '.join(each.title for each in FORMATS if each.names_a(path))}, "
            "which is written for layers that were read from it alone. For llama.cpp, write PEFT's format (the name of "
            "a folder) and convert that with its convert_lora_to_gguf.py, which knows what each architecture renames "
            "and permutes"
        )
    return next((each for each in fitting if each.name == source), fitting[0])


def is_adapter_folder(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is that of an adapter."""
    return any(name in names for each in FORMATS for name in each.files)


def adapter_files(path: Path) -> tuple[Path, ...]:
    """Return the files that an adapter may consist of: those of its folder, there or not, or the one file."""
    if not path.is_dir():
        return (path,)
    formats = [each for each in FORMATS if each.files]
    names = [name for each in formats for name in (*each.files, _pickled(Path(each.files[0])).name)]
    return tuple(path / name for name in dict.fromkeys(names))


def is_adapter(source: Source) -> bool:
    """Whether `open_adapter` reads a source: by the name of the file that it reads, or by what is in that.

    In memory, a model of PEFT's is an adapter, and a mapping is one by its names.
    """
    if not is_path(source):
        return _is_adapter_in_memory(source)
    try:
        where = _locate(source)
    except (FileNotFoundError, ValueError):
        return False
    if is_adapter_folder([where.with_suffix(SINGLE_FILE).name]):
        return True
    return where.suffix != ".json" and where.is_file() and holds_adapter(where)


def _is_adapter_in_memory(source: Source) -> bool:
    if isinstance(source, Adapter) or is_adapted(source):
        return True
    tensors = source.tensors if isinstance(source, Checkpoint) else tensors_of(state_of(source), name_of(source))
    return _is_recognised(AdapterFile(Path(name_of(source)), tensors, {}, {}))


def holds_adapter(path: Path) -> bool:
    """Whether a file of tensors is an adapter's."""
    return _is_recognised(AdapterFile(path, *open_file(path)))


def _is_recognised(file: AdapterFile) -> bool:
    return any(each.recognises(file) for each in FORMATS)


def _locate(source: str | PathLike[str]) -> Path:
    """Return the file of tensors that a path to an adapter means, which may be missing."""
    where = find_snapshot(Path(source))
    if any(where.name in each.files[1:] for each in FORMATS):
        where = where.parent
    return _find_adapter(where) if where.is_dir() else where


def _find_adapter(folder: Path) -> Path:
    formats = [each for each in FORMATS if each.files]
    # Several formats call their configuration alike; where the tensors are missing, the first is taken.
    for wanted in ([each.files[0] for each in formats], [name for each in formats for name in each.files]):
        present = [name for name in wanted if (folder / name).is_file()]
        if present:
            return _tensors_in(folder, next(each.files[0] for each in formats if present[0] in each.files))
    # Before adapters in its folders, which a model may be published with.
    if is_model_folder(folder):
        raise ValueError(
            f"{str(folder)!r} is a model checkpoint, not an adapter: its update is its difference from the checkpoint "
            "that it was tuned from, so give that one as its base"
        )
    inner = sorted({file.parent for each in formats for file in folder.glob(f"*/{each.files[-1]}")})
    if len(inner) == 1:
        return _find_adapter(inner[0])
    if inner:
        names = ", ".join(adapter.name for adapter in inner)
        raise ValueError(f"{str(folder)!r} contains several adapters ({names}): give the folder of one of them")
    files = sorted(file for suffix in SUFFIXES for file in folder.glob(f"*{suffix}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{str(folder)!r} contains several files ({names}): give one of them")
    if files:
        return files[0]
    configured = " or ".join(dict.fromkeys(each.files[-1] for each in formats))
    raise FileNotFoundError(
        f"no adapter in {str(folder)!r}: it has neither {configured} nor any safetensors or GGUF file"
    )


def _tensors_in(folder: Path, name: str) -> Path:
    tensors = folder / name
    pickled = _pickled(tensors)
    return pickled if pickled.is_file() and not tensors.is_file() else tensors


def _pickled(tensors: Path) -> Path:
    """Return the pickle that is read where a safetensors file is missing."""
    return tensors.with_suffix(".bin")
