"""Adapter files as they should not be: sound ones with bytes flipped, cut or swapped, or with a false header."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
from safetensors.numpy import save

CONFIG = {
    "peft_type": "LORA",
    "r": 3,
    "lora_alpha": 6,
    "rank_pattern": {"h.1.k": 2},
    "alpha_pattern": {"q": 5},
    "use_rslora": True,
    "use_dora": True,
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "bias": "none",
    "target_modules": ["q", "k"],
    "modules_to_save": ["head"],
    "target_parameters": None,
}


def peft_file() -> bytes:
    rng = np.random.default_rng(0)
    prefix = "base_model.model.h"
    return save(
        {
            f"{prefix}.0.q.lora_A.weight": rng.standard_normal((3, 6)).astype(np.float32),
            f"{prefix}.0.q.lora_B.weight": rng.standard_normal((5, 3)).astype(np.float32),
            f"{prefix}.1.k.lora_A.weight": rng.standard_normal((2, 4)).astype(ml_dtypes.bfloat16),
            f"{prefix}.1.k.lora_B.weight": rng.standard_normal((7, 2)).astype(ml_dtypes.bfloat16),
            f"{prefix}.0.q.lora_magnitude_vector": np.ones(5, np.float32),
            "base_model.model.head.weight": rng.standard_normal((2, 4)).astype(np.float16),
        },
        metadata={"format": "pt"},
    )


def kohya_file() -> bytes:
    rng = np.random.default_rng(1)
    return save(
        {
            "lora_unet_q.lora_down.weight": rng.standard_normal((2, 6)).astype(np.float16),
            "lora_unet_q.lora_up.weight": rng.standard_normal((4, 2)).astype(np.float16),
            "lora_unet_q.alpha": np.array(1.5, np.float32),
            "lora_unet_conv.lora_down.weight": rng.standard_normal((2, 3, 3, 3)),
            "lora_unet_conv.lora_up.weight": rng.standard_normal((4, 2, 1, 1)),
            "lora_unet_conv.alpha": np.array(2, np.int64),
        },
        metadata={"ss_network_dim": "2"},
    )


def mutants(original: bytes, seed: int, count: int) -> list[bytes]:
    """Mutate a file in many ways; the same ones for the same seed."""
    rng = np.random.default_rng([len(original), seed])
    return [MUTATIONS[rng.integers(len(MUTATIONS))](original, rng) for _ in range(count)]


def split(content: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: dict | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    end = pick(rng, 8, header, len(content))
    for place in rng.integers(0, end, size=rng.integers(1, 5)):
        changed[place] ^= rng.integers(1, 256)
    return bytes(changed)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(content) + 1, size=2))
    return pick(rng, content[:end], content[:start] + content[end:], content[start:], content + content[start:end])


def swap(content: bytes, rng: np.random.Generator) -> bytes:
    a, b, c, d = sorted(rng.integers(0, len(content) + 1, size=4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def lie_about_length(content: bytes, rng: np.random.Generator) -> bytes:
    true = struct.unpack("<Q", content[:8])[0]
    near = (true - 1, true + 1, len(content) - 8, len(content))
    lie = pick(rng, 0, 1, 2, *near, 99_999_999, 2**32, 2**62, 2**63, 2**64 - 1)
    return struct.pack("<Q", lie) + content[8:]


def lie_about_a_tensor(content: bytes, rng: np.random.Generator) -> bytes:
    header, data = split(content)
    name = pick(rng, *names_of(header))
    entry = header[name]
    start, end = entry["data_offsets"]
    shape, size = entry["shape"], int(np.prod(entry["shape"]))
    offsets = ([start, end + 1], [start + 1, end], [end, start], [-1, end], [0, 2**63], [start, 2**64], [start], [0, 0])
    same_size = ([*shape, 1], shape[::-1], [size], [1, size], [1] * 100 + shape)
    shapes = (*same_size, [], [0], [-1], [2 * n for n in shape], [2**33, 2**31], [2**40, 2**40], [0.5], "3", None)
    known = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "U8", "BOOL", "F8_E4M3", "F4", "C64")
    missing = dict(entry)
    del missing[pick(rng, *entry)]
    header[name] = pick(
        rng,
        entry | {"data_offsets": pick(rng, *offsets)},
        entry | {"shape": pick(rng, *shapes)},
        entry | {"dtype": pick(rng, *known, "F128", "", 7, None)},
        entry | {"surprise": [[[]]]},
        missing,
    )
    return join(header, data)


def lie_about_names(content: bytes, rng: np.random.Generator) -> bytes:
    header, data = split(content)
    one, other = (names_of(header)[at] for at in rng.choice(len(names_of(header)), 2, replace=False))
    without = {name: entry for name, entry in header.items() if name != one}
    names = ("", "../../etc/passwd", "\0", "\x1b[2J", "é" * 500, one + ".lora_mid.weight", "__metadata__", one.upper())
    partner = one.replace("lora_A", "lora_B").replace("down", "up")
    # json.dumps writes no key twice.
    twice = json.dumps(header)[:-1] + f", {json.dumps(one)}: {json.dumps(header[other])}" + "}"
    lie = pick(
        rng,
        without,
        header | {one: header[other], other: header[one]},
        header | {one: header[one] | {"data_offsets": header[other]["data_offsets"]}},
        without | {pick(rng, *names): header[one]},
        without | {partner: header[one]},
        header | {"__metadata__": pick(rng, {"a": 1}, [], "x", {"a": {}}, None)},
        twice,
    )
    return join(lie, data)


def names_of(header: dict) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def pick(rng: np.random.Generator, *choices):
    return choices[rng.integers(len(choices))]


MUTATIONS = (flip, cut, swap, lie_about_length, lie_about_a_tensor, lie_about_names)


def lying_values() -> tuple:
    """Return values that no entry of a configuration should have."""
    wrong = (None, True, 0, -1, 3, 0.5, 1e308, 5e-324, float("nan"), float("inf"), 2**64, 10**400, "", "q", "\ud800")
    nested = ([], [[]], [None], ["("], {}, {"q": None}, {"q": 10**400}, {"(": 3}, {"a{99999999999999999999}": 3})
    return (*wrong, *nested, {"\ud800": 4}, {"(" * 5000: 4})


def swelling_files():
    """Yield small files that claim, or expand to, something large: name, content, configuration."""
    A, B = (f"base_model.model.q.lora_{factor}.weight" for factor in "AB")
    long, rank = 1 << 13, 1 << 15
    column = np.ones((long, 1), np.float16)
    cubes = np.ones((rank, 1, 1, 1), np.float16)
    wrapped = {"dtype": "F32", "shape": [2**33, 2**31], "data_offsets": [0, 0]}
    many_axes = {"dtype": "U8", "shape": [1] * 9999, "data_offsets": [0, 1]}
    yield "header of 2^62 bytes", struct.pack("<Q", 2**62) + b"{" * 100, CONFIG
    yield "header of 99 MB", struct.pack("<Q", 99_000_000) + b"{" * 100, CONFIG
    yield "nested header", join("[" * 100_000, b""), CONFIG
    yield "sizes that wrap around", join({A: wrapped, B: wrapped}, b""), CONFIG
    yield "rank beyond both sides", save({A: column, B: column.T.copy()}), {**CONFIG, "r": long}
    yield "groups that spread", save({A: cubes, B: cubes}), {**CONFIG, "r": rank}
    yield "axes beyond NumPy's", join({A: many_axes, B: many_axes}, b"x"), CONFIG


def hostile_files():
    """Yield files that no writer makes and no reader can read: name, content."""
    data = np.arange(8, dtype=np.float32).tobytes()
    first, second = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")

    def lying(**other):
        sound = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        return join({first: sound, second: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]} | other}, data)

    latin = '{"\xe9": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}'.encode("latin-1")

    yield "empty", b""
    yield "shorter than a length", b"\x01\x00"
    yield "header of 2^63 bytes", struct.pack("<Q", 2**63) + data
    yield "header beyond the file", struct.pack("<Q", 1000) + b"{}"
    yield "overlapping offsets", lying(data_offsets=[8, 24])
    yield "one place for both", lying(data_offsets=[0, 16])
    yield "offsets beyond the file", lying(data_offsets=[16, 2**40], shape=[2**19, 2**19])
    yield "offsets in reverse", lying(data_offsets=[32, 16])
    yield "shape beyond its bytes", lying(shape=[2**31, 2**31])
    yield "shape that wraps around", lying(shape=[2**33, 2**31])
    yield "negative shape", lying(shape=[-2, -2])
    yield "bytes that no tensor names", lying() + b"more"
    yield "dtype of no kind", lying(dtype="F33")
    yield "deep nesting", join("{" + '"a":{' * 100_000, b"")
    yield "header that is a list", join("[]", b"")
    yield "header in Latin-1", struct.pack("<Q", len(latin)) + latin + data
    yield "pickle", pickle.dumps({first: [1.0]})
    yield "zip, as torch.save makes it", b"PK\x03\x04" + bytes(60)
