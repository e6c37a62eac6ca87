"""Outputs of a model with an adapter, beside those of the weights that it has to give."""

import copy
import warnings

import numpy as np
import torch
from peft import PeftModel

# Two float32 forward passes of a few layers, in another order of sums: measured within 6e-7, and 3e-3 where the factors
# are rounded to bfloat16.
FLOAT32 = 3e-6
BFLOAT16 = 1e-2
FULL = 10**6


def tokens(count=6, length=8, vocabulary=20):
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model, inputs):
    found = model.eval()(inputs)
    return (found.logits if hasattr(found, "logits") else found).double().numpy()


def loaded(model, folder):
    with warnings.catch_warnings():
        # PEFT warns of embeddings and of flags that do not fit every layer, which it corrects.
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(model), folder)


def difference(model, expected, inputs):
    """The largest difference of two models' outputs, relative to the largest output."""
    found, wanted = outputs(model, inputs), outputs(expected, inputs)
    return np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))


def assert_outputs(model, expected, inputs, tolerance):
    assert difference(model, expected, inputs) <= tolerance


def best(update, rank):
    """The best update of a rank; of a stack of matrices, that of each."""
    matrix = update if update.ndim == 3 else update.reshape(len(update), -1)
    U, values, Vt = np.linalg.svd(matrix, full_matrices=False)
    return (U[..., :rank] * values[..., None, :rank]) @ Vt[..., :rank, :]


def trained(model, names, size=0.1):
    """A copy of a model whose named parameters have changed by updates of full rank."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in names:
            parameter = tuned.get_parameter(name)
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return tuned


def with_best_updates(base, tuned, rank):
    """A copy of a model with the best updates of a rank added to all parameters that another has changed."""
    changed, after = copy.deepcopy(base), dict(tuned.named_parameters())
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            update = (after[name].double() - parameter.double()).numpy()
            if update.any():
                parameter.copy_(parameter.double() + torch.from_numpy(best(update, rank)).reshape(parameter.shape))
    return changed
