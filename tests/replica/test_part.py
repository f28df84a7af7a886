"""Parts: every value of the whole has its place, however often a tensor is cut."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.replica.part import Part, chunk_span, stacked_spans


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_cut_by_two_axes_every_value_is_held_once_and_can_be_put_back(parts, unit, tensor, shard):
    size = sum(parts) * unit * tensor
    whole = torch.arange(size * 3).view(size, 3)
    again, held = torch.full_like(whole, -1), 0
    for t in range(tensor):
        stacked = Part.whole(whole.shape).cut(0, stacked_spans(tuple(parts), size, t, tensor))
        assert stacked.local_shape == (size // tensor, 3)
        for s in range(shard):
            part = stacked.cut(0, [chunk_span(size // tensor, s, shard)])
            local = part.take(whole)
            assert local.shape == part.local_shape
            part.put(local, again)
            held += local.numel()
    assert torch.equal(again, whole)
    assert held == whole.numel()


def test_rows_and_columns_are_cut_independently():
    whole = torch.arange(24).view(4, 6)
    part = Part.whole(whole.shape).cut(1, [(2, 4)]).cut(0, [(1, 3)])
    assert torch.equal(part.take(whole), whole[1:3, 2:4])
    assert [box.offsets for box in part.boxes()] == [(1, 2)]


def test_spans_of_a_stack_take_an_equal_piece_of_each_part():
    assert stacked_spans((4, 1, 1), 12, 1, 2) == [(4, 8), (9, 10), (11, 12)]
