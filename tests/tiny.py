"""A tiny random Qwen3-MoE checkpoint with a byte-level tokenizer, made on the spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    vocab["<|endoftext|>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(seed: int = 0, **changes: object) -> Qwen3MoeForCausalLM:
    """Three layers, the first of them dense, eight experts, top-2."""
    settings: dict[str, object] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [0],
        "eos_token_id": 256,
        "pad_token_id": 256,
        "initializer_range": 0.5,
    }
    torch.manual_seed(seed)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**(settings | changes))).eval()


def save_model(path: Path, seed: int = 0, chat: bool = True, **changes: object) -> Path:
    model = make_model(seed, **changes)
    model.save_pretrained(path)
    make_tokenizer(chat).save_pretrained(path)
    return path
