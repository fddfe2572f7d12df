"""Write a checkpoint as a Hugging Face model folder in the published Mixtral layout (bfloat16)."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from model import Config
from safetensors.torch import save_file
from torch import Tensor

CARD = """\
# tiny

A very small base language model for trying out and testing moecli: Mixtral architecture, 7 layers, 8 experts
of which 2 work on each token, 7.9 million parameters. It continues text in six domains: English, French,
German, Spanish and Italian prose, and Python code. It is not a chat model, it knows nothing, and what it
writes is often wrong or senseless; do not rely on it for anything. It was trained for about 2.3 hours on two
CPU cores on the documentation, translations, quotations and stories of free Debian packages, old Bible
translations and Python source files. The list of sources with versions and licences, held-out results and all
training code are in the `training` folder of the moecli repository. The code is under the Apache-2.0 licence;
the weights may be used in the same way, as far as the licences of the training texts leave that to us.
"""


def weights(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Weights under their published names, every expert's matrices apart."""
    found = {}
    for name, weight in state.items():
        name, weight = f"model.{name}", weight.detach().bfloat16()
        if name.endswith((".w1", ".w2", ".w3")):
            stem, kind = name.rsplit(".", 1)
            for expert in range(config.num_local_experts):
                found[f"{stem}.experts.{expert}.{kind}.weight"] = weight[expert].clone().contiguous()
        else:
            found[name] = weight.clone().contiguous()
    return found


def settings(config: Config) -> dict[str, dict[str, object]]:
    """Contents of the JSON files beside the weights."""
    return {
        "config.json": {
            "architectures": ["MixtralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "dtype": "bfloat16",
            "eos_token_id": 1,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "model_type": "mixtral",
            "output_router_logits": False,
            "router_aux_loss_coef": 0.015,
            "router_jitter_noise": 0.0,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_cache": True,
            **asdict(config),
        },
        "generation_config.json": {
            "bos_token_id": 0,
            "eos_token_id": 1,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.9,
            "repetition_penalty": 1.1,
            "max_new_tokens": 80,
        },
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "model_max_length": config.max_position_embeddings,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }


def write(state: dict[str, Tensor], tokenizer: Path, target: Path) -> None:
    """Write the folder beside the target, then move file after file into place."""
    config = Config()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tiny-") as scratch:
        folder = Path(scratch)
        save_file(weights(state, config), folder / "model.safetensors", metadata={"format": "pt"})
        for name, content in settings(config).items():
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
        (folder / "README.md").write_text(CARD, "utf-8")
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)
            path.replace(target / path.name)


def main() -> None:
    """Export a checkpoint of train.py."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=Path(__file__).parent.parent / "moecli" / "tiny")
    options = parser.parse_args()
    state = torch.load(options.checkpoint, weights_only=False)
    write(state["model"], options.tokenizer, options.target)
    size = sum(path.stat().st_size for path in options.target.iterdir())
    print(f"step {state['step']}, {state['seen'] / 1e6:.1f} M tokens: {size:,} bytes in {options.target.name}")


if __name__ == "__main__":
    main()
