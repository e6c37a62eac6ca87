"""Score adapters of several ranks on a task: the curve that no figure of the update can draw.

    python score_ranks.py BASE TOKENIZER HEAD HELD_OUT ADAPTER [ADAPTER ...]

HELD_OUT has a label and a text in each line, separated by a tab, which training has not seen; HEAD is the classifier's
linear layer as torch saved it. For a task of another kind, replace `accuracy`.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer


@torch.no_grad()
def accuracy(base, adapter, tokenizer, head, texts, labels):
    """Return the fraction of texts that get their label: a head on the mean over tokens of the adapted encoder."""
    encoder = AutoModel.from_pretrained(base, add_pooling_layer=False)
    encoder = PeftModel.from_pretrained(encoder, adapter).eval()
    tokenize, head = AutoTokenizer.from_pretrained(tokenizer), torch.load(head)
    right = 0
    for start in range(0, len(texts), 32):
        batch = tokenize(
            list(texts[start : start + 32]), padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        states, mask = encoder(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        answers = (means @ head["weight"].T + head["bias"]).argmax(1)
        right += sum(answers.numpy() == labels[start : start + 32])
    return right / len(texts)


def main():
    base, tokenizer, head, held_out, *adapters = sys.argv[1:]
    lines = [line.split("\t", 1) for line in Path(held_out).read_text(encoding="utf-8").splitlines()]
    labels, texts = [int(label) for label, _ in lines], [text for _, text in lines]
    for adapter in adapters:
        print(f"{adapter}: accuracy {accuracy(base, adapter, tokenizer, head, texts, labels):.3f}")


if __name__ == "__main__":
    main()
