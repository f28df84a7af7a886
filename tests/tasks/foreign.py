"""Random models that transformers builds, of every family, in folders that it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from plait.data import bpe, vocabulary
from plait.spec.objective import SENTINELS
from tests.runs import WORDS

VOCABULARY, CONTEXT = 300, 48
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "eos_token_id": 0}),
    "llama": ("Llama", {**DECODER, "head_dim": 12, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    "llama tied": ("Llama", {**DECODER, "tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {**DECODER, "rope_parameters": {**LLAMA3, "rope_theta": 5000.0}}),
    "llama stretched": ("Llama", {**DECODER, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "mistral": ("Mistral", {**DECODER, "sliding_window": CONTEXT}),
    "qwen2": ("Qwen2", DECODER),
    "qwen3": ("Qwen3", {**DECODER, "head_dim": 16}),
    "mixtral": ("Mixtral", {**DECODER, "num_local_experts": 4, "sliding_window": None}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**DECODER, "head_dim": 8, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True}
        | {"mlp_only_layers": [0]},
    ),
    "bert": (
        "Bert",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": CONTEXT},
    ),
}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 12, "d_ff": 56, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}
MODELS |= {"t5": ("T5", T5), "t5 gated": ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})}
HEADS = {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM", "T5": "ForConditionalGeneration"}

Saved = Callable[..., Path]


def tokenizer_json() -> str:
    return bpe.train([" ".join(WORDS)] * 3, 272)


def speaking_tokenizer_json() -> str:
    """With what masked tokens and hidden spans need."""
    sentinels = [vocabulary.sentinel(number) for number in reversed(range(SENTINELS))]
    return bpe.train([" ".join(WORDS)] * 3, 380, [bpe.END_OF_TEXT, vocabulary.MASKS[0], *sentinels])


def save(folder: Path, name: str, tokenizer: str, **changes: Any) -> Path:
    """A folder with a random model of transformers', every value of which means something."""
    import torch
    import transformers

    family, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**settings, **changes})
    model = getattr(transformers, f"{family}{HEADS.get(family, 'ForCausalLM')}")(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder
