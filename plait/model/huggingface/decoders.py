"""GPT-2, Llama, Mistral, Qwen2, Qwen3, Mixtral and Qwen3-MoE: plait's decoders under their names at Hugging Face.

          gpt2          llama, mistral    qwen2        qwen3          mixtral          qwen3_moe
plait     gpt2          llama             qkv_bias     qk_norm        moe, softmax     moe, softmax, qk_norm, dense_layers
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plait.errors import CheckpointError
from plait.model.huggingface.dialect import Config, Dialect, Shape, Source, Weight, same, stacked, turned

_ROPE = 10_000.0
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_SILU = ("silu", "swish")
_SCALED: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
        "original": "original_max_position_embeddings",
    },
}
"""How angles are scaled: plait's settings and theirs."""


def _read_gpt2(config: Config) -> dict[str, Any]:
    config.only("activation_function", *_GELU)
    config.only("scale_attn_weights", True)
    config.ignore("n_ctx", "reorder_and_upcast_attn", "summary_*")
    return {
        "family": "gpt2",
        "layers": config.take("n_layer"),
        "width": (width := config.take("n_embd")),
        "heads": config.take("n_head"),
        "hidden": config.take("n_inner", 4 * width),
        "dropout": config.rates("attn_pdrop", "embd_pdrop", "resid_pdrop"),
        "norm_eps": config.take("layer_norm_epsilon", 1e-5),
        "tied": config.take("tie_word_embeddings", True),
        "vocabulary": config.take("vocab_size"),
        "context": config.context("n_positions"),
    }


def _write_gpt2(shape: Shape) -> dict[str, Any]:
    model = shape.model
    return {
        "activation_function": "gelu_new",
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), model.dropout),
        "layer_norm_epsilon": model.norm_eps,
        "n_embd": model.width,
        "n_head": model.heads,
        "n_inner": model.hidden_width,
        "n_layer": model.layers,
        "n_positions": shape.context,
        "tie_word_embeddings": model.tied_head,
        "vocab_size": shape.vocabulary,
    }


def _weights_gpt2(shape: Shape) -> Iterator[Weight]:
    model, width, hidden = shape.model, shape.model.width, shape.model.hidden_width
    yield same("embed.weight", "transformer.wte.weight", shape.vocabulary, width)
    yield same("positions.weight", "transformer.wpe.weight", shape.context, width)
    for layer in range(model.layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for norm, name in (("norm1", "ln_1"), ("norm2", "ln_2")):
            yield same(f"{ours}.{norm}.weight", f"{theirs}.{name}.weight", width)
            yield same(f"{ours}.{norm}.bias", f"{theirs}.{name}.bias", width)
        for path, name, outputs, inputs in (
            ("attention.qkv", "attn.c_attn", 3 * width, width),
            ("attention.out", "attn.c_proj", width, width),
            ("mlp.up", "mlp.c_fc", hidden, width),
            ("mlp.down", "mlp.c_proj", width, hidden),
        ):
            yield turned(f"{ours}.{path}.weight", f"{theirs}.{name}.weight", outputs, inputs)
            yield same(f"{ours}.{path}.bias", f"{theirs}.{name}.bias", outputs)
    yield same("norm.weight", "transformer.ln_f.weight", width)
    yield same("norm.bias", "transformer.ln_f.bias", width)
    yield from _head(shape)


def _read_llama(config: Config) -> dict[str, Any]:
    config.only("hidden_act", *_SILU)
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    context = config.context("max_position_embeddings")
    _refuse_windows(config, context)
    width, heads = config.take("hidden_size"), config.take("num_attention_heads")
    head_size = config.take("head_dim", width // heads)
    return {
        "family": "llama",
        "layers": config.take("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": config.take("num_key_value_heads", heads),
        "head_size": None if head_size * heads == width else head_size,
        "hidden": config.take("intermediate_size"),
        "dropout": config.rates("attention_dropout"),
        "norm_eps": config.take("rms_norm_eps", 1e-6),
        **_angles(config),
        "tied": config.take("tie_word_embeddings", False),
        "vocabulary": config.take("vocab_size"),
        "context": context,
    }


def _read_qwen2(config: Config) -> dict[str, Any]:
    return _read_llama(config) | {"qkv_bias": True}


def _read_qwen3(config: Config) -> dict[str, Any]:
    return _read_llama(config) | {"qk_norm": True}


def _read_mixtral(config: Config) -> dict[str, Any]:
    config.ignore("router_aux_loss_coef", "output_router_logits")
    config.only("router_jitter_noise", 0.0)
    settings = _read_llama(config)
    of_experts = {"experts": config.take("num_local_experts", 8), "expert_hidden": settings["hidden"]}
    return settings | {"family": "moe", "scores": "softmax", "balance": "none", **_per_token(config), **of_experts}


def _read_qwen3_moe(config: Config) -> dict[str, Any]:
    config.ignore("router_aux_loss_coef", "output_router_logits")
    config.only("decoder_sparse_step", 1)
    if not config.maybe("norm_topk_prob"):
        raise config.lacks("norm_topk_prob", False, "divides the weights of a token's experts by their sum")
    dense = sorted(config.maybe("mlp_only_layers") or [])
    if dense != list(range(len(dense))):
        raise config.lacks("mlp_only_layers", dense, "has a plain MLP in the first layers alone")
    experts = config.maybe("num_local_experts") or config.take("num_experts", 128)
    config.ignore("num_experts")
    of_experts = {"experts": experts, "expert_hidden": config.take("moe_intermediate_size", 768), "dense_layers": len(dense)}
    return _read_qwen3(config) | {"family": "moe", "scores": "softmax", "balance": "none", **_per_token(config), **of_experts}


def _per_token(config: Config) -> dict[str, int]:
    per_token = config.take("num_experts_per_tok", 2)
    if per_token == 1:
        raise config.lacks("num_experts_per_tok", 1, "weighs a token's only expert by its score, where theirs weighs one")
    return {"experts_per_token": per_token}


def _refuse_windows(config: Config, context: int) -> None:
    """A window as long as the context hides nothing."""
    config.ignore("max_window_layers")
    window = config.maybe("sliding_window")
    used = config.maybe("use_sliding_window") is not False
    kinds = set(config.maybe("layer_types") or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise config.lacks("layer_types", sorted(kinds), "has full attention")
    windowed = (used and window is not None) or "sliding_attention" in kinds
    if windowed and (window or 0) < context:
        raise config.lacks("sliding_window", window, f"sees the whole context; {config.asked}{window} takes the model for texts as short")


def _angles(config: Config) -> dict[str, Any]:
    """From either form of the settings. Raises CheckpointError for angles that are scaled in another way."""
    parameters, alone = dict(config.maybe("rope_parameters") or {}), config.maybe("rope_theta")
    theta = parameters.pop("rope_theta", None) or alone or _ROPE
    parameters = dict(config.maybe("rope_scaling") or parameters)
    parameters.pop("rope_theta", None)
    config.only("partial_rotary_factor", 1.0)
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    if kind not in _SCALED:
        raise config.lacks("rope_scaling", kind, "has " + " and ".join(_SCALED))
    scaling = {ours: parameters.pop(theirs) for ours, theirs in _SCALED[kind].items() if theirs in parameters}
    parameters.pop("type", None)
    if parameters.pop("partial_rotary_factor", 1.0) != 1.0 or parameters:
        raise config.lacks("rope_parameters", parameters or "partial", "rotates whole heads")
    return {"rope_theta": float(theta), "rope_scaling": {"kind": kind, **scaling} if scaling else None}


def _write_angles(shape: Shape) -> dict[str, Any]:
    """In the form of transformers 5, and in that of 4."""
    scaling, theta = shape.model.rope_scaling, shape.model.rope_theta
    if scaling is None:
        return {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "rope_theta": theta}
    told = {theirs: getattr(scaling, ours) for ours, theirs in _SCALED[scaling.kind].items()} | {"rope_type": scaling.kind}
    return {"rope_parameters": {"rope_theta": theta, **told}, "rope_theta": theta, "rope_scaling": told}


def _write_llama(shape: Shape) -> dict[str, Any]:
    model = shape.model
    return {
        "attention_bias": False,
        "attention_dropout": model.dropout,
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.key_value_heads,
        "rms_norm_eps": model.norm_eps,
        **_write_angles(shape),
        "tie_word_embeddings": model.tied_head,
        "vocab_size": shape.vocabulary,
    }


def _write_qwen(shape: Shape) -> dict[str, Any]:
    return _write_llama(shape) | {"use_sliding_window": False}


def _write_mixtral(shape: Shape) -> dict[str, Any]:
    mixture = shape.model.mixture
    experts = {"num_local_experts": mixture.experts, "num_experts_per_tok": mixture.per_token}
    return _write_llama(shape) | {"intermediate_size": mixture.hidden, "sliding_window": None, **experts}


def _write_qwen3_moe(shape: Shape) -> dict[str, Any]:
    mixture = shape.model.mixture
    experts = {"num_experts": mixture.experts, "num_experts_per_tok": mixture.per_token, "moe_intermediate_size": mixture.hidden}
    dense = list(range(shape.model.dense_layers or 0))
    return _write_qwen(shape) | {"decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": dense, **experts}


def _weights_llama(shape: Shape) -> Iterator[Weight]:
    model, width = shape.model, shape.model.width
    heads, kv_heads = model.heads * model.head_width, model.key_value_heads * model.head_width
    yield same("embed.weight", "model.embed_tokens.weight", shape.vocabulary, width)
    for layer in range(model.layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        yield same(f"{ours}.norm1.weight", f"{theirs}.input_layernorm.weight", width)
        names = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        rows = {f"{theirs}.self_attn.{name}": size for name, size in names.items()}
        yield stacked(f"{ours}.attention.qkv.weight", {f"{name}.weight": size for name, size in rows.items()}, width)
        if model.biased_qkv:
            yield stacked(f"{ours}.attention.qkv.bias", {f"{name}.bias": size for name, size in rows.items()})
        yield same(f"{ours}.attention.out.weight", f"{theirs}.self_attn.o_proj.weight", width, heads)
        if model.qk_norm:
            yield same(f"{ours}.attention.norm_q.weight", f"{theirs}.self_attn.q_norm.weight", model.head_width)
            yield same(f"{ours}.attention.norm_k.weight", f"{theirs}.self_attn.k_norm.weight", model.head_width)
        yield same(f"{ours}.norm2.weight", f"{theirs}.post_attention_layernorm.weight", width)
        yield from _mixture(shape, layer) if model.mixes(layer) else _swiglu(shape, layer)
    yield same("norm.weight", "model.norm.weight", width)
    yield from _head(shape)


def _swiglu(shape: Shape, layer: int) -> Iterator[Weight]:
    width, hidden, theirs = shape.model.width, shape.model.hidden_width, f"model.layers.{layer}.mlp"
    both = {f"{theirs}.gate_proj.weight": hidden, f"{theirs}.up_proj.weight": hidden}
    yield stacked(f"blocks.{layer}.mlp.gate_up.weight", both, width)
    yield same(f"blocks.{layer}.mlp.down.weight", f"{theirs}.down_proj.weight", width, hidden)


def _mixture(shape: Shape, layer: int) -> Iterator[Weight]:
    """Experts are stacked, each its gate and then its up."""
    width, mixture = shape.model.width, shape.model.mixture
    number, hidden, ours = mixture.experts, mixture.hidden, f"blocks.{layer}.mlp"
    theirs = f"model.layers.{layer}." + ("mlp" if shape.model.qk_norm else "block_sparse_moe")
    gate, up, down = ("gate_proj", "up_proj", "down_proj") if shape.model.qk_norm else ("w1", "w3", "w2")
    yield same(f"{ours}.router.weight", f"{theirs}.gate.weight", number, width)
    both = [f"{theirs}.experts.{expert}.{name}.weight" for expert in range(number) for name in (gate, up)]
    yield Weight(f"{ours}.experts.gate_up", (number, 2 * hidden, width), tuple(Source(name, (hidden, width)) for name in both))
    downs = [f"{theirs}.experts.{expert}.{down}.weight" for expert in range(number)]
    yield Weight(f"{ours}.experts.down", (number, width, hidden), tuple(Source(name, (width, hidden)) for name in downs))


def _head(shape: Shape) -> Iterator[Weight]:
    if not shape.model.tied_head:
        yield same("head.weight", "lm_head.weight", shape.vocabulary, shape.model.width)


def kind_of(shape: Shape) -> str:
    """The model_type that a decoder of these settings has there. Raises CheckpointError naming what none of them has."""
    model = shape.model
    wrong = None
    if model.family == "gpt2":
        if model.key_value_heads != model.heads:
            wrong = f"model.kv_heads = {model.kv_heads}"
        elif model.head_width * model.heads != model.width:
            wrong = f"model.head_size = {model.head_size}"
        elif model.qk_norm or not model.biased_qkv:
            wrong = f"model.qk_norm = {str(model.qk_norm).lower()}, model.qkv_bias = {str(model.biased_qkv).lower()}"
    elif model.qk_norm and model.biased_qkv:
        wrong = "model.qk_norm with model.qkv_bias"
    elif model.family == "moe":
        wrong = _foreign_mixture(shape)
    if wrong:
        raise CheckpointError(f'{wrong}: no family at Hugging Face that plait writes has this with model.family = "{model.family}"')
    if model.family == "moe":
        return "qwen3_moe" if model.qk_norm else "mixtral"
    return "gpt2" if model.family == "gpt2" else "qwen2" if model.biased_qkv else "qwen3" if model.qk_norm else "llama"


def _foreign_mixture(shape: Shape) -> str | None:
    model, mixture = shape.model, shape.model.mixture
    if mixture.scores != "softmax":
        return f'model.scores = "{mixture.scores}"'
    if mixture.balance == "bias":
        return 'model.balance = "bias", which adds to scores'
    if mixture.shared or mixture.per_token == 1:
        return f"model.shared_experts = {mixture.shared}, model.experts_per_token = {mixture.per_token}"
    if model.biased_qkv:
        return "model.qkv_bias = true"
    if model.dense_layers and not model.qk_norm:
        return f"model.dense_layers = {model.dense_layers} without model.qk_norm"
    return None


_MASKS = ("*.attn.bias", "*.attn.masked_bias")
_ANGLES = ("*.rotary_emb.inv_freq",)
DECODERS = (
    Dialect("gpt2", "GPT2LMHeadModel", _read_gpt2, _write_gpt2, _weights_gpt2, "transformer.", _MASKS),
    Dialect("llama", "LlamaForCausalLM", _read_llama, _write_llama, _weights_llama, "model.", _ANGLES),
    Dialect("mistral", "MistralForCausalLM", _read_llama, _write_llama, _weights_llama, "model.", _ANGLES),
    Dialect("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_qwen, _weights_llama, "model.", _ANGLES),
    Dialect("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen, _weights_llama, "model.", _ANGLES),
    Dialect("mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral, _weights_llama, "model.", _ANGLES),
    Dialect("qwen3_moe", "Qwen3MoeForCausalLM", _read_qwen3_moe, _write_qwen3_moe, _weights_llama, "model.", _ANGLES),
)
