"""Print held-out perplexity and expert load of the exported model for every domain."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from model import Config, Model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

WINDOW = 512


def load(folder: Path) -> Model:
    """The exported weights in the training model, in float32."""
    config = Config()
    model, published = Model(config), load_file(folder / "model.safetensors")
    state = {}
    for name in model.state_dict():
        stem, _, kind = name.rpartition(".")
        if kind in ("w1", "w2", "w3"):
            state[name] = torch.stack(
                [
                    published[f"model.{stem}.experts.{expert}.{kind}.weight"]
                    for expert in range(config.num_local_experts)
                ]
            )
        else:
            state[name] = published[f"model.{name}"]
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def measure(model: Model, ids: list[int]) -> tuple[float, int, Tensor]:
    """Total negative log likelihood, number of predicted tokens and load [layer, expert]."""
    config = model.config
    load = torch.zeros(config.num_hidden_layers, config.num_local_experts)
    total, count = 0.0, 0
    for start in range(0, len(ids), WINDOW - 1):
        window = torch.tensor([[0, *ids[start : start + WINDOW - 1]]])
        hidden, _, all_chosen = model.hidden(window[:, :-1])
        logits = F.linear(hidden, model.embed_tokens.weight)
        total += F.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
        for layer, chosen in enumerate(all_chosen):
            load[layer] += torch.bincount(chosen.flatten(), minlength=config.num_local_experts)
    return total, count, load / load.sum(-1, keepdim=True)


def main() -> None:
    """Print two Markdown tables: perplexity, and the busiest expert of every layer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "moecli" / "tiny")
    parser.add_argument("--heldout", type=Path, default=Path(__file__).parent / "heldout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load(options.model)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    loads = {}
    print("| domain | bytes | tokens | perplexity | bits per byte |\n|---|---|---|---|---|")
    for path in sorted(options.heldout.glob("*.txt")):
        text = path.read_text("utf-8")
        total, count, loads[path.stem] = measure(model, tokenizer.encode(text, add_special_tokens=False).ids)
        size = len(text.encode())
        print(
            f"| {path.stem} | {size} | {count} | {math.exp(total / count):.1f} | {total / math.log(2) / size:.2f} |",
            flush=True,
        )
    layers = range(model.config.num_hidden_layers)
    print("\nBusiest expert and its share of the load (an even load would be 12.5 %):\n")
    print(f"| domain | {' | '.join(f'layer {layer}' for layer in layers)} |\n|---|{'---|' * len(layers)}")
    for name, shares in loads.items():
        best = [f"{int(row.argmax())}: {100 * row.max():.0f} %" for row in shares]
        print(f"| {name} | {' | '.join(best)} |")
    mean = torch.stack(list(loads.values())).mean(0)
    spread = torch.stack([(shares - mean).abs().sum(-1) / 2 for shares in loads.values()]).mean(0)
    print(f"\nMean load of one expert over all domains: from {100 * mean.min():.1f} % to {100 * mean.max():.1f} %.")
    print(
        "Share of a domain's load that differs from the mean, by layer: "
        + ", ".join(f"{100 * value:.0f} %" for value in spread)
        + "."
    )


if __name__ == "__main__":
    main()
