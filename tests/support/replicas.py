"""Small replicas of public repositories: their file names, containers, formats, tensor names and kinds of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support import checkpoints, quantised_layouts, torch_files, vocabularies
from tests.support.grok_replicas import CONFIG as GROK
from tests.support.grok_replicas import Grok, write_hpcai, write_keyfan, write_release, write_v2ray
from tests.support.oracle import transformers
from tests.support.toy_tokenizers import byte_level, metaspace, write_json

Tensors = dict[str, torch.Tensor]
_ROWS = 704  # of every table: more than any tokenizer here has ids
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_MISTRAL = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


@dataclass(frozen=True)
class Replica:
    """One repository: what it is like in words, who writes it, and the tokenizer that it must be given."""

    repo: str
    weights: str
    tokenizer: str
    write: Callable[[Path], object]
    given: str | None = None  # to --tokenizer


def _model(family: str, **changes: Any) -> tuple[dict[str, Any], Tensors]:
    """config.json and the tensors, in bf16, of a model as its vendor names them."""
    return _made(family, json.dumps(changes, sort_keys=True))


@cache
def _made(family: str, changes: str) -> tuple[dict[str, Any], Tensors]:
    import tempfile

    rows = {"vocab_size": _ROWS}
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoints.write(checkpoints.make(family, **rows | json.loads(changes)), Path(folder))
        config = json.loads((path / "config.json").read_text())
        tensors = {name: each.bfloat16() for name, each in torch_files.load_folder(path).items()}
    return config | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}, tensors


def _shards(folder: Path, tensors: Tensors, count: int, name: str = "model-{:05}-of-{:05}", index: bool = True) -> None:
    """Safetensors under a vendor's way of numbering."""
    files: dict[str, str] = {}
    for number in range(count):
        file = f"{name.format(number + 1, count)}.safetensors"
        part = dict(sorted(tensors.items())[number::count])
        save_file({key: each.contiguous() for key, each in part.items()}, folder / file, {"format": "pt"})
        files |= dict.fromkeys(part, file)
    if index:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})


def _sentencepiece(folder: Path, name: str = "tokenizer.model", **config: Any) -> None:
    (folder / name).write_bytes(vocabularies.sentencepiece())
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"} | config)


def _json(folder: Path, kind: Callable[[], Any], **config: Any) -> None:
    kind().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)


def _ranks(folder: Path, name: str, **config: Any) -> None:
    (folder / name).write_bytes(vocabularies.written(vocabularies.small_ranks()))
    write_json(folder / "tokenizer_config.json", config)


def _remote_code(folder: Path, config: dict[str, Any], *names: str) -> None:
    """auto_map and the Python files that go with it, which nothing here may run."""
    write_json(folder / "config.json", config | {"auto_map": {"AutoModelForCausalLM": f"{names[0]}.Model"}})
    for name in names:
        (folder / f"{name}.py").write_text("raise SystemExit('remote code was run')\n")


def _mixtral(template: Any = None, version: str | None = None, index: bool = True, **tokenizer: bool) -> Any:
    def write(folder: Path) -> None:
        config, tensors = _model("mixtral")
        write_json(folder / "config.json", config)
        _shards(folder, tensors, 3, index=index)
        (folder / "consolidated.00.pt").write_bytes(b"PK\3\4 another copy of the weights")
        more = {"chat_template": template} if template else {}
        _sentencepiece(folder, **more)
        if not tokenizer.get("alone"):
            _json(folder, metaspace, bos_token="<s>", eos_token="</s>", **more)
        if version:
            (folder / f"tokenizer.model.{version}").write_bytes(vocabularies.sentencepiece())

    return write


def _native_mixtral(folder: Path) -> None:
    write_json(folder / "params.json", {"dim": 32, "n_layers": 2, "moe": {"num_experts": 5}})
    _sentencepiece(folder)
    save_file(_model("mixtral")[1], folder / "consolidated.safetensors")


def _gptq(folder: Path) -> None:
    config, tensors = _model("mixtral", hidden_size=64, intermediate_size=64)
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
    write_json(folder / "config.json", config | {"quantization_config": quantised})
    save_file(quantised_layouts.gptq(tensors), folder / "model.safetensors")
    _json(folder, metaspace, bos_token="<s>", eos_token="</s>")


def _gguf(folder: Path) -> None:
    (folder / "mixtral-8x7b.Q4_K_M.gguf").write_bytes(b"GGUF")
    write_json(folder / "config.json", {"model_type": "mixtral"})


def _dbrx(vocabulary: bool) -> Any:
    def write(folder: Path) -> None:
        config, tensors = _model("dbrx")
        _shards(folder, tensors, 3)
        if vocabulary:
            inert = {"output_attentions": False, "return_dict": True, "chunk_size_feed_forward": 0, "pruned_heads": {}}
            parts = {key: config[key] | inert for key in ("attn_config", "ffn_config")}
            write_json(folder / "config.json", config | parts)
            _json(folder, byte_level, tokenizer_class="GPT2Tokenizer", chat_template=_CHATML)
        else:
            _remote_code(folder, config, "modeling_dbrx", "configuration_dbrx", "tiktoken")
            settings = {"tokenizer_class": "TiktokenTokenizerWrapper", "model_name": "gpt-4", "add_bos_token": False}
            write_json(folder / "tokenizer_config.json", settings)

    return write


def _deepseek(family: str, name: str, shards: int, **changes: Any) -> Any:
    def write(folder: Path) -> None:
        config, tensors = _model(family, **changes)
        _remote_code(folder, config, "modeling_deepseek", "configuration_deepseek")
        _shards(folder, tensors, shards, name)
        _json(folder, byte_level, bos_token="<|bos|>", eos_token="<|eos|>", add_bos_token=True)

    return write


def _fp8(family: str, tokenizer: Callable[[Path], None], name: str = "model-{:05}-of-{:06}") -> Any:
    def write(folder: Path) -> None:
        config, tensors = _model(family)
        scheme = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
        write_json(folder / "config.json", config | {"quantization_config": scheme})
        _shards(folder, quantised_layouts.fp8(tensors), 2, name)
        tokenizer(folder)

    return write


def _int4(folder: Path) -> None:
    config, tensors = _model("deepseek_v3", hidden_size=64, moe_intermediate_size=32)
    scheme = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    write_json(folder / "config.json", config | {"quantization_config": scheme})
    _shards(folder, quantised_layouts.int4(tensors), 2, "model-{}-of-{}")
    _kimi(folder)


def _kimi(folder: Path) -> None:
    count = len(vocabularies.small_ranks())
    names = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>"}
    declared = {str(count + place): {"content": name, "special": True} for place, name in names.items()}
    own = {"bos_token": "[BOS]", "eos_token": "[EOS]", "tokenizer_class": "TikTokenTokenizer"}
    _ranks(folder, "tiktoken.model", added_tokens_decoder=declared, **own)
    (folder / "tokenization_kimi.py").write_text("raise SystemExit('remote code was run')\n")


def _moonlight(folder: Path) -> None:
    config, tensors = _model("deepseek_v3")
    _remote_code(folder, config, "modeling_deepseek", "tokenization_moonshot")
    _shards(folder, tensors, 3, "model-{}-of-{}")
    _kimi(folder)


def _qwen(folder: Path) -> None:
    config, tensors = _model("qwen3_moe")
    write_json(folder / "config.json", config)
    _shards(folder, tensors, 4)
    _json(folder, byte_level, eos_token="<|im_end|>", chat_template=_CHATML)


def _gpt_oss(folder: Path) -> None:
    config, tensors = quantised_layouts.gpt_oss(_ROWS)
    write_json(folder / "config.json", config)
    _shards(folder, tensors, 3, "model-{:05}-of-{:05}")
    _json(folder, byte_level, eos_token="<|eos|>")


@cache
def _grok() -> Grok:
    return Grok(config=GROK | {"num_hidden_layers": 2, "vocab_size": _ROWS})


def _grok_written(write: Callable[[Grok, Path], Path], tokenizer: bool = False) -> Any:
    def written(folder: Path) -> None:
        made = write(_grok(), folder / "made")
        for path in made.iterdir():
            path.rename(folder / path.name)
        made.rmdir()
        if tokenizer:
            _json(folder, metaspace, bos_token="<s>", eos_token="</s>")

    return written


def _cut_for_eight(config: Mapping[str, Any], name: str, save: Callable[[Tensors, Path], object]) -> Any:
    """Tensor-parallel shards without an index: each holds a part of every tensor."""

    def write(folder: Path) -> None:
        write_json(folder / "config.json", GROK | {"vocab_size": _ROWS} | config)
        for rank in range(8):
            save({"model.layers.0.w1.weight": torch.zeros(8, 64)}, folder / name.format(rank))

    return write


def _switch(kind: str) -> Any:
    def write(folder: Path) -> None:
        library = transformers()
        config = library.SwitchTransformersConfig(
            vocab_size=_ROWS, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_decoder_layers=4, num_heads=4,
            num_experts=4, num_sparse_encoder_layers=2, num_sparse_decoder_layers=2, architectures=[
                "SwitchTransformersForConditionalGeneration"
            ],
        )  # fmt: skip
        torch.manual_seed(0)
        state = library.SwitchTransformersForConditionalGeneration(config).state_dict()
        config.save_pretrained(folder)
        if kind == "safetensors":
            save_file({name: each.clone() for name, each in state.items()}, folder / "model.safetensors")
        else:
            torch_files.write(folder, state, 1 if kind == "one" else 2)
        _json(folder, metaspace, eos_token="</s>")
        (folder / "spiece.model").write_bytes(vocabularies.sentencepiece())

    return write


_BIN, _SAFE = "torch's `.bin`", "safetensors"
_TWO = "`tokenizer.json`, `tokenizer.model`"
_NAMED = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": _MISTRAL}]
REPLICAS = (
    Replica("mistralai/Mixtral-8x7B-v0.1", _SAFE, _TWO, _mixtral()),
    Replica("mistralai/Mixtral-8x7B-Instruct-v0.1", _SAFE, _TWO, _mixtral(_MISTRAL)),
    Replica("mistralai/Mixtral-8x22B-Instruct-v0.1", _SAFE, _TWO, _mixtral(_NAMED, "v3")),
    Replica("somebody/mixtral-finetune", _SAFE, "`tokenizer.model`", _mixtral(_MISTRAL, alone=True)),
    Replica("somebody/mixtral-without-index", f"{_SAFE}, no index", _TWO, _mixtral(index=False)),
    Replica("someone/mixtral-8x7b-32kseqlen", "Mistral's own", "`tokenizer.model`", _native_mixtral),
    Replica("TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ", f"{_SAFE}, GPTQ", "`tokenizer.json`", _gptq),
    Replica("TheBloke/Mixtral-8x7B-Instruct-v0.1-GGUF", "GGUF", "in it", _gguf),
    Replica("databricks/dbrx-instruct", _SAFE, "`tokenizer.json`", _dbrx(True)),
    Replica("alpindale/dbrx-instruct", _SAFE, "`tiktoken.py` alone", _dbrx(False), "databricks/dbrx-instruct"),
    Replica("Undi95/dbrx-base", _SAFE, "`tiktoken.py` alone", _dbrx(False), "cl100k_base.tiktoken"),
    Replica("xai-org/grok-1", "the release", "none", _grok_written(write_release)),
    Replica("hpcai-tech/grok-1", _BIN, "`tokenizer.json`", _grok_written(write_hpcai, True)),
    Replica("keyfan/grok-1-hf", _BIN, "none", _grok_written(write_keyfan)),
    Replica("v2ray/grok-1", _SAFE, "none", _grok_written(write_v2ray)),
    Replica("lmzheng/grok-1", f"{_BIN}, cut in 8", "none",
            _cut_for_eight({}, "pytorch_model-00001-{:03}.bin", torch.save)),
    Replica("xai-org/grok-2", f"{_SAFE}, cut in 8", "`tokenizer.tok.json`",
            _cut_for_eight({"architectures": ["Grok1ForCausalLM"]}, "pytorch_model-00001-TP-{:03}.safetensors",
                           save_file)),
    Replica("deepseek-ai/DeepSeek-V2-Chat", _SAFE, "`tokenizer.json`",
            _deepseek("deepseek_v2", "model-{:05}-of-{:06}", 4)),
    Replica("deepseek-ai/DeepSeek-V2-Lite-Chat", _SAFE, "`tokenizer.json`",
            _deepseek("deepseek_v2", "model-{:05}-of-{:06}", 4, q_lora_rank=None)),
    Replica("deepseek-ai/DeepSeek-V3", f"{_SAFE}, fp8", "`tokenizer.json`",
            _fp8("deepseek_v3", lambda folder: _json(folder, byte_level, eos_token="<|eos|>"))),
    Replica("moonshotai/Moonlight-16B-A3B-Instruct", _SAFE, "`tiktoken.model`", _moonlight),
    Replica("moonshotai/Kimi-K2-Instruct", f"{_SAFE}, fp8", "`tiktoken.model`",
            _fp8("deepseek_v3", _kimi, "model-{}-of-{}")),
    Replica("moonshotai/Kimi-K2-Thinking", f"{_SAFE}, int4", "`tiktoken.model`", _int4),
    Replica("Qwen/Qwen3-30B-A3B", _SAFE, "`tokenizer.json`", _qwen),
    Replica("Qwen/Qwen3-30B-A3B-FP8", f"{_SAFE}, fp8", "`tokenizer.json`",
            _fp8("qwen3_moe", lambda folder: _json(folder, byte_level, eos_token="<|im_end|>"))),
    Replica("openai/gpt-oss-20b", f"{_SAFE}, MXFP4", "`tokenizer.json`", _gpt_oss),
    Replica("google/switch-base-8", _BIN, "`tokenizer.json`, `spiece.model`", _switch("one")),
    Replica("google/switch-base-64", f"{_BIN}, shards", "`tokenizer.json`, `spiece.model`", _switch("shards")),
    Replica("somebody/switch-base-8-safetensors", _SAFE, "`tokenizer.json`, `spiece.model`", _switch("safetensors")),
)  # fmt: skip
