"""Arrays and tensors as NumPy's arrays: of PyTorch's, without importing it, and what cannot be read refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS, as_dtype

__all__ = ["ACCEPTED", "as_array", "as_stored_array"]

_NOT_OF_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
ACCEPTED = f"accepted are {', '.join(FLOATS)}, integers and booleans"
"""The dtypes of updates and weights, for messages."""


def as_array(numbers: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return numbers as an array, and the dtype that they are stored in; as float32 where NumPy has no such dtype."""
    tensor = _tensor_of(numbers, name)
    if tensor is None:
        array = np.asarray(numbers)
        return array, array.dtype.name
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in _NOT_OF_NUMPY and str(tensor.layout) == "torch.strided":
        # float32 has each of their values exactly.
        return tensor.float().numpy(), dtype
    try:
        array = tensor.numpy()
    except TypeError as error:
        raise ValueError(
            f"{name} is a tensor of dtype {tensor.dtype} and layout {tensor.layout}, which NumPy cannot read "
            f"({error}); {ACCEPTED}, dense. Pass {name}.to_dense() or {name}.float()."
        ) from None
    return array, array.dtype.name


def as_stored_array(weights: Any, name: str) -> NDArray[Any]:
    """Return weights of any shape in the dtype that they are stored in, not copied; that of ml_dtypes for bfloat16."""
    tensor = _tensor_of(weights, name)
    dtype = "" if tensor is None else str(tensor.dtype).removeprefix("torch.")
    if tensor is None or dtype not in _NOT_OF_NUMPY or str(tensor.layout) != "torch.strided":
        array = as_array(weights, name)[0]
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    import torch

    stored = as_dtype(dtype)
    bits = tensor.view(torch.int16 if stored.itemsize == 2 else torch.uint8)
    return bits.numpy().view(stored)  # type: ignore[no-any-return]  # PyTorch is not imported for types


def _tensor_of(numbers: Any, name: str) -> Any:
    """Return a CPU tensor without its gradient, None where numbers are not a tensor; refuse what NumPy cannot read."""
    # Masked and sparse arrays and tensors are known by their methods, without importing what defines them.
    if hasattr(numbers, "mask") and hasattr(numbers, "filled"):
        raise ValueError(f"{name} is a masked array; plain arrays are accepted. Fill it, for example with .filled(0).")
    if hasattr(numbers, "nnz"):
        raise ValueError(f"{name} is a sparse array; dense ones are accepted. Convert it, for example with .toarray().")
    if not (hasattr(numbers, "detach") and hasattr(numbers, "device")):
        if hasattr(numbers, "to_dense"):
            raise ValueError(f"{name} is {numbers!r}; an array is accepted here. Pass {name}.to_dense().")
        return None
    tensor = numbers.detach()
    if tensor.device.type == "meta":
        raise ValueError(f"{name} is a tensor on meta, which has a shape and no numbers; load its weights first.")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is a tensor on {tensor.device}; only CPU tensors are accepted. Pass {name}.cpu().")
    return tensor
