"""The sentence encoder with a linear head: training in full and by LoRA, scores, and what its layers meet."""

import copy
from contextlib import contextmanager

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from schedule import BATCH
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoTokenizer

# All linear layers of attention and of the MLP.
TARGETS = ("query", "key", "value", "dense")
ALPHA = 16
HEAD_RATE = 3e-3
WARM_UP = 10
LENGTH = 32
# Texts are sorted by length within this many batches, so that little of a batch is padding.
POOL = 8


class Classifier(nn.Module):
    """An encoder's mean over tokens, and a linear head."""

    def __init__(self, encoder, tokenizer, classes):
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def embed(self, tokens, mask):
        """Return the mean of each text's tokens, (texts, width)."""
        states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    def forward(self, tokens, mask):
        """Return the logits of each text."""
        return self.head(self.embed(tokens, mask))

    def encode(self, texts):
        """Return the token numbers of each text."""
        return self.tokenizer(list(texts), truncation=True, max_length=LENGTH)["input_ids"]


def load_encoder(folder):
    """Return the pretrained encoder without dropout or pooling layer, of which nothing requires gradients."""
    encoder = AutoModel.from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return encoder.requires_grad_(requires_grad=False)


def make_classifier(encoder, folder, classes, seed, rank=None):
    """Return a classifier whose encoder is trained in full, or by LoRA of a rank; its embeddings of tokens are not."""
    torch.manual_seed(seed)
    encoder = copy.deepcopy(encoder)
    if rank is None:
        encoder.encoder.requires_grad_(requires_grad=True)
    else:
        encoder = get_peft_model(encoder, LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(TARGETS)))
    return Classifier(encoder, AutoTokenizer.from_pretrained(folder), classes)


def train(classifier, examples, *, rate, steps, seed):
    """Train what requires gradients: AdamW without decay, a rate that rises and then falls to zero."""
    encoder = [parameter for parameter in classifier.encoder.parameters() if parameter.requires_grad]
    groups = [{"params": encoder, "lr": rate}, {"params": classifier.head.parameters(), "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 1.0) * (1 - step / steps)
    )
    tokens, labels = classifier.encode(examples.texts), torch.from_numpy(examples.labels)
    for chosen in batches([len(text) for text in tokens], steps, seed):
        optimizer.zero_grad()
        cross_entropy(classifier(*padded([tokens[i] for i in chosen])), labels[chosen]).backward()
        optimizer.step()
        schedule.step()


def batches(lengths, steps, seed):
    """Yield batches of shuffled indices, epoch after epoch, each of texts of about one length."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.intp)
    lengths = np.asarray(lengths)
    for _ in range(-(-steps // POOL)):
        while len(order) < POOL * BATCH:
            order = np.concatenate([order, rng.permutation(len(lengths))])
        pool, order = order[: POOL * BATCH], order[POOL * BATCH :]
        pool = pool[np.argsort(lengths[pool], kind="stable")].reshape(POOL, BATCH)
        for batch in pool[rng.permutation(POOL)][: min(POOL, steps)]:
            yield torch.from_numpy(batch)
        steps -= POOL


def padded(tokens):
    """Return the token numbers of several texts as one tensor, and the mask of what is not padding."""
    rows = [torch.tensor(text) for text in tokens]
    mask = [torch.ones_like(row) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), nn.utils.rnn.pad_sequence(mask, batch_first=True)


@torch.no_grad()
def embeddings(classifier, texts):
    """Return the embedding of each text as an array (texts, width)."""
    tokens = classifier.encode(texts)
    order = np.argsort([len(text) for text in tokens], kind="stable")
    rows = [
        classifier.embed(*padded([tokens[i] for i in part]))
        for part in np.split(order, range(BATCH, len(order), BATCH))
    ]
    return torch.cat(rows).numpy()[np.argsort(order)]


@torch.no_grad()
def score(head, vectors, labels):
    """Return the accuracy and loss of embeddings under a head, and which texts were right, as hexadecimal bits."""
    logits = head(torch.from_numpy(vectors))
    right = (logits.argmax(-1).numpy() == labels).astype(np.uint8)
    loss = cross_entropy(logits, torch.from_numpy(labels)).item()
    return {
        "accuracy": significant(right.mean()),
        "loss": significant(loss),
        "right": np.packbits(right).tobytes().hex(),
    }


def fit_head(vectors, labels, classes, seed):
    """Return the head that fits fixed embeddings: logistic regression with a little decay."""
    torch.manual_seed(seed)
    head = nn.Linear(vectors.shape[1], classes)
    vectors, labels = torch.from_numpy(vectors), torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = cross_entropy(head(vectors), labels) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head


def weights(encoder):
    """Return the matrix of each target layer, in float64."""
    return {name: layer.weight.detach().double().numpy() for name, layer in target_layers(encoder).items()}


def vectors(encoder):
    """Return the biases and norms of the layers."""
    return {name: vector.detach().clone() for name, vector in encoder.encoder.named_parameters() if vector.ndim == 1}


def target_layers(encoder):
    """Return the linear layers that adapters go on."""
    return {
        name: layer
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in TARGETS
    }


@torch.no_grad()
def set_weights(encoder, matrices, others=None):
    """Set the target matrices of an encoder, and its biases and norms where they are given."""
    for name, layer in target_layers(encoder).items():
        layer.weight.copy_(torch.from_numpy(matrices[name]))
    for name, vector in (others or {}).items():
        encoder.encoder.get_parameter(name).copy_(vector)


@torch.no_grad()
def second_moments(classifier, texts):
    """Return the mean of x xᵀ over the tokens of texts, for the inputs x of each target layer, in float64."""
    tokens = classifier.encode(texts)
    sums, masks = {}, []

    def meet(name, inputs):
        met = inputs[masks[-1]]
        sums[name] = sums.get(name, 0.0) + (met.T @ met).double().numpy()

    with hooked(target_layers(classifier.encoder), meet):
        for start in range(0, len(tokens), BATCH):
            batch, mask = padded(tokens[start : start + BATCH])
            masks.append(mask.bool())
            classifier.embed(batch, mask)
    count = sum(map(len, tokens))
    return {name: total / count for name, total in sums.items()}


@contextmanager
def hooked(layers, meet):
    """Call `meet` with the name and the inputs of each layer that runs."""
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: meet(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def significant(value, digits=5):
    """Return a number rounded to the digits of the results."""
    return float(f"{float(value):.{digits}g}")
