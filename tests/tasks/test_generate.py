"""Generation: the cache, the batch and the streaming change nothing that is written."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plait import spec
from plait.errors import UserError
from plait.model.build import build
from plait.tasks.generate import Sampling, generate, stream
from plait.tasks.sampling import sample

CONTEXT = 40
PROMPTS = ["a", "the quick brown", "", "hello, hello"]


class Letters:
    """Bytes, shown as Latin letters; 0 ends a text."""

    vocabulary = 128
    end_of_text = 0
    fingerprint = "letters"

    def encode(self, texts):
        return [np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids):
        return "".join(chr(token) for token in ids)


class Scripted(nn.Module):
    """A user's own model, without a cache, that recites."""

    def __init__(self, text, context=None):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.script = [ord(letter) for letter in text] + [0]
        if context is not None:
            self.context = context

    def forward(self, tokens_BL, documents_BL=None, noise=None):
        places = torch.arange(tokens_BL.shape[1]).clamp_max(len(self.script) - 1)
        return nn.functional.one_hot(torch.tensor(self.script)[places], 128).double().expand(len(tokens_BL), -1, -1)


@pytest.fixture(params=["gpt2", "llama"], scope="module")
def model(request):
    settings_ = spec.Model(family=request.param, layers=2, width=32, heads=4, kv_heads=2)
    module = build(settings_, 128, CONTEXT, seed=1, dtype=torch.float64)
    for parameter in module.parameters():  # far from uniform, so that what was seen tells
        parameter.data.mul_(8)
    return module


def recite(text, **changes):
    return generate(Scripted(text), Letters(), [""], Sampling(temperature=0, **changes))[0]


def test_cached_logits_are_those_of_the_whole(model):
    tokens = torch.randint(0, 128, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        cache = model.new_cache(3, CONTEXT)
        parts = [model(tokens[:, first:end], cache=cache) for first, end in ((0, 9), (9, 10), (10, 17), (17, CONTEXT))]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-12)
        with pytest.raises(ValueError, match="41 positions do not fit a cache of 40"):
            model(tokens[:, :1], cache=cache)


def test_greedy_is_the_likeliest_token_of_a_full_forward(model):
    completion = generate(model, Letters(), ["some words"], Sampling(tokens=20, temperature=0))[0]
    ids = [0, *(ord(letter) for letter in "some words")]
    for token in completion.tokens:
        with torch.no_grad():
            assert model(torch.tensor([ids]))[0, -1].argmax().item() == token
        ids.append(token)


@pytest.mark.parametrize("changes", [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}])
def test_a_batch_writes_what_each_prompt_alone_would(model, changes):
    sampling = Sampling(tokens=60, seed=4, **changes)
    together = generate(model, Letters(), PROMPTS, sampling)
    for number, prompt in enumerate(PROMPTS):
        others = ["x"] * number  # the same number, another neighbourhood
        assert generate(model, Letters(), [*others, prompt], sampling)[number] == together[number]


def test_the_seed_decides(model):
    first, again, other = (generate(model, Letters(), ["a"], Sampling(tokens=15, seed=seed))[0].tokens for seed in (1, 1, 2))
    assert first == again != other
    one, two = generate(model, Letters(), ["a", "a"], Sampling(tokens=15))
    assert one.tokens != two.tokens


def test_pieces_make_up_the_text(model):
    pieces = dict.fromkeys(range(len(PROMPTS)), "")

    def on_text(number, piece):
        assert piece
        pieces[number] += piece

    completions = generate(model, Letters(), PROMPTS, Sampling(tokens=25, stop=("e", "th")), on_text)
    assert [pieces[number] for number in range(len(PROMPTS))] == [completion.text for completion in completions]
    assert "".join(stream(model, Letters(), PROMPTS[0], Sampling(tokens=25, stop=("e", "th")))) == completions[0].text


def test_streaming_leaves_gradients_and_training_as_they_were(model):
    model.train()
    pieces = stream(model, Letters(), "abc", Sampling(tokens=5))
    next(pieces)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    pieces.close()
    assert model.training


def test_ends_at_end_of_text():
    completion = recite("once upon a time")
    assert (completion.text, completion.reason, completion.tokens[-1]) == ("once upon a time", "end", 0)


def test_ends_after_the_asked_tokens():
    assert (recite("once upon a time", tokens=4).text, recite("once upon a time", tokens=4).reason) == ("once", "tokens")


def test_stops_before_the_first_stop_string():
    completion = recite("one, two; three", stop=("three", "; t", "two!"))
    assert (completion.text, completion.reason) == ("one, two", "stop")


def test_what_only_began_like_a_stop_string_is_shown():
    assert recite("hel", stop=("hello",)).text == "hel"
    assert recite("helhello", stop=("hello",)).text == "hel"


@settings(max_examples=60, deadline=None)
@given(st.text("ab", max_size=14), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_shown_text_is_cut_at_the_earliest_stop(text, stops):
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    # A stop is seen when its last letter comes, so that of two the one that ends first decides.
    first = min((place + len(stop) for stop in stops if (place := text.find(stop)) >= 0), default=None)
    if first is None:
        assert recite(text, stop=tuple(stops)).text == text
    else:
        shown = recite(text, stop=tuple(stops)).text
        assert text.startswith(shown)
        assert len(shown) in ends
        assert not any(stop in shown for stop in stops)


def test_stops_where_the_context_ends(model):
    prompt = "x" * (CONTEXT - 3)
    completion = generate(model, Letters(), [prompt, "y"], Sampling(tokens=9, temperature=0))[0]
    assert len(completion.tokens) <= 3
    assert completion.reason == "context" or 0 in completion.tokens


def test_a_prompt_may_fill_the_context_but_no_more(model):
    assert len(generate(model, Letters(), ["x" * (CONTEXT - 1)], Sampling(tokens=9))[0].tokens) == 1
    with pytest.raises(UserError, match=r"prompt 2: its 41 tokens.*context of 40; shorten it"):
        generate(model, Letters(), ["x", "x" * CONTEXT])


def test_no_prompts_are_no_completions(model):
    assert generate(model, Letters(), []) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"stop": ("",)},
        {"stop": "x"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} = .*must be"):
        Sampling(**wrong)


def shares(**changes):
    """How often each of five tokens is sampled."""
    logits = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2], dtype=torch.float64)).expand(4000, -1)
    draws = torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.bincount(torch.tensor(sample(logits, Sampling(**changes), draws)), minlength=5) / 4000


def close(told, expected):
    return torch.allclose(told, torch.tensor(expected), atol=0.03)


def test_sampling_follows_the_probabilities():
    assert close(shares(temperature=1.0), [0.1, 0.4, 0.05, 0.25, 0.2])
    assert close(shares(temperature=0.5), [0.0370, 0.5926, 0.0093, 0.2315, 0.1481])
    assert close(shares(temperature=1e-300), [0.0, 1.0, 0.0, 0.0, 0.0])


def test_top_k_and_top_p_leave_out_the_unlikely():
    assert close(shares(temperature=1.0, top_k=2), [0, 0.6154, 0, 0.3846, 0])
    assert close(shares(temperature=1.0, top_p=0.6), [0, 0.6154, 0, 0.3846, 0])
    assert close(shares(temperature=1.0, top_p=0.7), [0, 0.4706, 0, 0.2941, 0.2353])
    assert close(shares(temperature=1.0, top_p=0.01), [0, 1.0, 0, 0, 0])
    assert close(shares(temperature=1.0, top_k=99, top_p=1.0), [0.1, 0.4, 0.05, 0.25, 0.2])
