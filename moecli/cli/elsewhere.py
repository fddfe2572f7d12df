"""What other programs call it: their commands and options, and what does it here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

COMMANDS = {
    "chat": "run", "generate": "run", "start": "run", "info": "inspect", "heatmap": "inspect", "download": "pull",
    "get": "pull", "install": "pull", "convert": "pack", "quantize": "pack", "create": "pack", "ps": "list",
    "models": "list", "remove": "rm", "delete": "rm", "uninstall": "rm", "check": "verify", "params": "inspect",
    "estimate": "memory", "fit": "memory", "benchmark": "bench", "env": "doctor", "version": "--version",
    "search": "list --known", "server": "serve", "api": "serve", "logprobs": "score", "ppl": "perplexity",
    "diff": "compare", "kld": "compare",
}  # fmt: skip

_VRAM = "--vram SIZE bounds what a GPU holds; experts that do not fit there are computed from RAM, by themselves"
_LAYERS = f"no layers are counted: {_VRAM}; --device cpu uses none"
_TENSORS = "tensors are placed by budgets, not by name: --vram SIZE and --ram SIZE"
_CONTEXT = "--ctx N is the context, prompt and answer together"
_THREADS = "--threads N"
_LENGTH = "--max-tokens N, or -n N"
_MODEL = "MODEL is the first argument, a Hub id too: moecli run mixtral"
_BLOCKS = "prompts are read in blocks as large as memory allows: nothing to set"
_CACHE = "the KV cache has 16 bits a number; a shorter --ctx N makes it smaller"
_ONE_GPU = "one GPU is used: --device cuda:1 names another"
_DISK = "--ram SIZE bounds memory; experts that do not fit are read from disk as they are needed"
_CHAT = "without a prompt, on a terminal, it is a chat: moecli run MODEL"
_SYSTEM = "--system TEXT"
_DTYPE = "--dtype q4 (q8, q3, nf4, int8, ...)"
_TEMPLATE = "the model's own chat template is used; --raw uses none"

OPTIONS = {
    "-ngl": _LAYERS, "--n-gpu-layers": _LAYERS, "--gpu-layers": _LAYERS, "--num-gpu": _LAYERS,
    "--gpu-memory-utilization": _VRAM,
    "-ncmoe": _VRAM, "--n-cpu-moe": _VRAM, "-cmoe": _VRAM, "--cpu-moe": _VRAM, "--cpu-offload-gb": _VRAM,
    "-ot": _TENSORS, "--override-tensor": _TENSORS, "--device-map": _TENSORS,
    "-c": _CONTEXT, "--ctx-size": _CONTEXT, "--n-ctx": _CONTEXT, "--num-ctx": _CONTEXT, "--context": _CONTEXT,
    "--context-length": _CONTEXT, "--max-model-len": _CONTEXT, "--max-seq-len": _CONTEXT,
    "-t": _THREADS, "--threads": _THREADS, "-tb": _THREADS, "--threads-batch": _THREADS, "--num-thread": _THREADS,
    "-n": _LENGTH, "--n-predict": _LENGTH, "--predict": _LENGTH, "--num-predict": _LENGTH, "--max-new-tokens": _LENGTH,
    "--temp": "--temperature X", "-s": "--seed N", "--repetition-penalty": "--repeat-penalty X",
    "-p": "-p TEXT, or the text in quotes behind MODEL", "--prompt": "-p TEXT, or the text in quotes behind MODEL",
    "-m": _MODEL, "--model": _MODEL, "-hf": _MODEL, "--hf-repo": _MODEL,
    "-b": _BLOCKS, "--batch-size": _BLOCKS, "-ub": _BLOCKS, "--ubatch-size": _BLOCKS,
    "-fa": "attention is computed in blocks, always: nothing to switch on",
    "--flash-attn": "attention is computed in blocks, always: nothing to switch on",
    "-ctk": _CACHE, "--cache-type-k": _CACHE, "-ctv": _CACHE, "--cache-type-v": _CACHE, "--kv-cache-dtype": _CACHE,
    "--mmap": _DISK, "--no-mmap": _DISK, "--mlock": _DISK,
    "-sm": _ONE_GPU, "--split-mode": _ONE_GPU, "-ts": _ONE_GPU, "--tensor-split": _ONE_GPU, "-mg": _ONE_GPU,
    "--main-gpu": _ONE_GPU, "-tp": _ONE_GPU, "--tensor-parallel-size": _ONE_GPU,
    "-i": _CHAT, "--interactive": _CHAT, "-cnv": _CHAT, "--conversation": _CHAT,
    "-sys": _SYSTEM, "--system-prompt": _SYSTEM,
    "--load-in-4bit": _DTYPE, "--load-in-8bit": _DTYPE, "--quantization": _DTYPE, "--quantize": _DTYPE,
    "--jinja": _TEMPLATE, "--chat-template": _TEMPLATE,
    "--trust-remote-code": "no code of a model is ever run: leave it out",
}  # fmt: skip


def mistaken(args: Sequence[str], known: Collection[str]) -> str | None:
    """The first word in what was typed that the parser would take for several of our short options, as -ngl for -n."""
    options = args[: args.index("--")] if "--" in args else args
    words = (word.partition("=")[0] for word in options)
    return next(
        (word for word in words if word in OPTIONS and word not in known and len(word) > 2 and word[1] != "-"), None
    )


def hint(option: str, known: Collection[str], command: str) -> str | None:
    """What does here what an option does elsewhere; None for one that nobody has."""
    if (meaning := OPTIONS.get(option)) is None:
        return None
    ours = [word.strip(",;:") for word in meaning.split() if word.startswith("-")]
    if all(word in known for word in ours):
        return meaning
    return f"{command} has nothing of the kind; moecli run has {meaning}"
