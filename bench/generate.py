"""`generate` against transformers.generate: the same weights and prompts, greedy and with a cache, so that both write the same tokens."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from place import DEMO, SMALL, TINY, Figure, Place

from plait import spec
from plait.model.build import build
from plait.model.decoder import Decoder
from plait.tasks.generate import Sampling, generate

GOAL = 1.5
VOCABULARY = 2048
PROMPT, NEW = 32, 128


def measure(place: Place) -> list[Figure]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return [_compare(place, settings, rows) for settings in (DEMO, SMALL) for rows in (1, 16)]


def _compare(place: Place, settings: dict[str, object], rows: int) -> Figure:
    model = spec.Model.model_validate({**settings, **(TINY if place.effort.tiny else {})})
    ours = build(model, VOCABULARY, PROMPT + NEW, seed=0).eval()
    assert isinstance(ours, Decoder)
    theirs = _as_transformers(ours)
    prompts = np.random.default_rng(0).integers(1, VOCABULARY, (rows, PROMPT - 1))
    new = 8 if place.effort.tiny else NEW
    contenders = (lambda: _plait(ours, prompts, new), lambda: _transformers(theirs, prompts, new))
    assert contenders[0]() == contenders[1](), "the two write different tokens"
    taken = [_turns(contenders, place.effort.seconds) for _ in range(place.effort.rounds)]
    parameters = sum(parameter.numel() for parameter in ours.parameters()) / 1e6
    what = f"generate / transformers.generate, {parameters:.1f}M parameters, batch {rows}"
    fastest = rows * new / min(seconds for seconds, _ in taken)
    return Figure.of(what, GOAL, [other / one for one, other in taken], detail=f"{fastest:,.0f} tokens/s")


def _turns(contenders: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Mean seconds of each, who take turns until the time is over: of small models one turn is over in a moment."""
    taken: list[list[float]] = [[] for _ in contenders]
    while sum(map(sum, taken)) < seconds:
        for contender, mine in zip(contenders, taken, strict=True):
            began = time.perf_counter()
            contender()
            mine.append(time.perf_counter() - began)
    return [statistics.fmean(mine) for mine in taken]


def _plait(model: Decoder, prompts: np.ndarray, new: int) -> list[list[int]]:
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    return [completion.tokens for completion in generate(model, Numbers(), texts, Sampling(tokens=new, temperature=0))]


def _transformers(model: torch.nn.Module, prompts: np.ndarray, new: int) -> list[list[int]]:
    tokens_BL = torch.from_numpy(np.pad(prompts, ((0, 0), (1, 0))))
    with torch.inference_mode():
        written = model.generate(tokens_BL, attention_mask=torch.ones_like(tokens_BL), max_new_tokens=new, do_sample=False)  # type: ignore[operator]
    return [row[PROMPT:] for row in written.tolist()]


def _as_transformers(model: Decoder) -> torch.nn.Module:
    """The same weights in transformers' Llama, which has queries, keys and values, and gate and up, in matrices of their own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own = model.model
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=own.width,
        intermediate_size=own.hidden_width,
        num_hidden_layers=own.layers,
        num_attention_heads=own.heads,
        num_key_value_heads=own.key_value_heads,
        max_position_embeddings=PROMPT + NEW,
        rms_norm_eps=own.norm_eps,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    width = own.width // own.heads
    parts = [own.heads * width, own.key_value_heads * width, own.key_value_heads * width]
    state = model.state_dict()
    values = {"model.embed_tokens": state["embed.weight"], "model.norm": state["norm.weight"], "lm_head": state["head.weight"]}
    for layer in range(own.layers):
        here, there = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = state[f"{here}.attention.qkv.weight"].split(parts)
        gate, up = state[f"{here}.mlp.gate_up.weight"].chunk(2)
        values |= {f"{there}.self_attn.{name}_proj": weight for name, weight in zip("qkv", (q, k, v), strict=True)}
        values |= {f"{there}.mlp.gate_proj": gate, f"{there}.mlp.up_proj": up, f"{there}.mlp.down_proj": state[f"{here}.mlp.down.weight"]}
        values |= {f"{there}.self_attn.o_proj": state[f"{here}.attention.out.weight"]}
        values |= {f"{there}.input_layernorm": state[f"{here}.norm1.weight"]}
        values |= {f"{there}.post_attention_layernorm": state[f"{here}.norm2.weight"]}
    theirs: torch.nn.Module = LlamaForCausalLM(config).eval()
    theirs.load_state_dict({f"{name}.weight": weight for name, weight in values.items()})
    return theirs


class Numbers:
    """A tokenizer for benchmarks: a token's text is its number."""

    vocabulary, end_of_text, fingerprint = VOCABULARY, 0, "numbers"

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(text.split(), dtype=np.uint32) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)
