"""Training of the base, full fine-tuning and LoRA by PEFT; scores of models, and measures of updates."""

import copy
import math
import time

import numpy as np
import torch
from model import TARGETS
from peft import LoraConfig, get_peft_model
from plan import ALPHA
from tasks import ANSWER
from torch.nn.functional import cross_entropy

from lowrank_core import LowRankUpdate, effective_rank, spectrum, truncate

WARM_UP = 20


def train(network, sentences, *, optimizer, rate, steps, batch, seed):
    """Train the parameters that require gradients, and return the processor time in seconds."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimize = make_optimizer(optimizer, trained, rate)
    # Up over WARM_UP steps, then down to zero, so that the last loss is not one of a single noisy step.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimize, lambda step: min((step + 1) / WARM_UP, 1.0) * (1 - step / steps)
    )
    begun = time.process_time()
    for taken in batches(sentences, batch, steps, seed):
        optimize.zero_grad()
        loss_of(network, taken).backward()
        optimize.step()
        schedule.step()
    return time.process_time() - begun


def make_optimizer(name, parameters, rate):
    """Return torch's AdamW, or SGD with the usual momentum."""
    if name == "adamw":
        # Decay would add a multiple of the whole base to the full update, and none to an adapter's.
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, fused=True)


def batches(sentences, size, steps, seed):
    """Yield batches of shuffled sentences, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(sentences), generator=generator)])
        yield sentences[order[:size]]
        order = order[size:]


def loss_of(network, sentences):
    """Return the mean cross-entropy of the words of the answers, in nats."""
    logits = network(sentences[:, :-1], ANSWER)
    return cross_entropy(logits.flatten(0, 1), sentences[:, -ANSWER:].flatten())


@torch.no_grad()
def score(network, sentences):
    """Return the loss and the recall: the fraction of answers with every word right under greedy decoding."""
    logits = network(sentences[:, :-1], ANSWER)
    answers = sentences[:, -ANSWER:]
    loss = cross_entropy(logits.flatten(0, 1), answers.flatten()).item()
    recall = (logits.argmax(-1) == answers).all(1).double().mean().item()
    # JSON has no infinity and no NaN: a diverged run has no loss.
    return {"loss": significant(loss) if math.isfinite(loss) else None, "recall": round(recall, 5)}


def fully(base):
    """Return a copy of the base whose target matrices require gradients."""
    network = copy.deepcopy(base)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = is_target(name)
    return network


def adapted(base, rule, rank, seed):
    """Return a copy of the base with PEFT's LoRA on the target matrices, as PEFT initialises it."""
    torch.manual_seed(seed)
    # PEFT's scaling is lora_alpha over the rank, or over its root with use_rslora.
    alpha = 2 * rank if rule == "twice" else ALPHA
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rule == "rslora", target_modules=list(TARGETS))
    return get_peft_model(copy.deepcopy(base), config)


def is_target(name):
    """Whether a parameter is one of the target matrices."""
    return name.removesuffix(".weight").rpartition(".")[2] in TARGETS


def full_update(base, tuned):
    """Return the update of each target matrix, in float64."""
    before, after = base.state_dict(), tuned.state_dict()
    return {
        name.removesuffix(".weight"): (after[name].double() - before[name].double()).numpy()
        for name in before
        if is_target(name)
    }


def lora_update(network):
    """Return the update of each target matrix as its factors, with PEFT's own scaling."""
    return {
        name.removeprefix("base_model.model."): LowRankUpdate(
            module.lora_B["default"].weight.detach().double().numpy(),
            module.lora_A["default"].weight.detach().double().numpy(),
            module.scaling["default"],
        )
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
    }


def spectra_of(update):
    """Return the spectrum of each matrix of an update, or None for a run that diverged."""
    arrays = (part for matrix in update.values() for part in parts(matrix))
    if not all(np.isfinite(array).all() for array in arrays):
        return None
    return {name: spectrum(matrix) for name, matrix in update.items()}


def parts(matrix):
    """Return the arrays of an update."""
    return (matrix.B, matrix.A) if isinstance(matrix, LowRankUpdate) else (matrix,)


def measured(spectra):
    """Return the norm of a whole update, and the mean effective rank of its matrices."""
    return {
        "norm": significant(math.sqrt(sum(s.norm**2 for s in spectra.values()))),
        "effective_rank": significant(np.mean([effective_rank(s) for s in spectra.values()])),
    }


def extracted(base, update, sentences, rank):
    """Return the scores of the base with the best update of a rank, or of the rank by a function of the spectrum."""
    factors = {name: truncate(matrix, rank) for name, matrix in update.items()}
    network = copy.deepcopy(base)
    with torch.no_grad():
        for name, factor in factors.items():
            network.get_submodule(name).weight += torch.from_numpy(factor.to_dense())
    return score(network, sentences) | {"rank": significant(np.mean([factor.rank for factor in factors.values()]))}


def significant(value, digits=5):
    """Return a number rounded to the digits of the results."""
    return float(f"{float(value):.{digits}g}")
