"""Rows of bytes from each member of a bare group to each other, while something else is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from plait.sync.link import Link
from plait.sync.strategy import PeerLost


class Exchange:
    """Rows of bytes from each member to each other. sent: bytes of those that this member sent."""

    def __init__(self, group: ProcessGroup, link: Link | None) -> None:
        self._group = group
        self._link = link
        self.sent = 0

    def __call__(self, rows: Sequence[Tensor], into: Sequence[Tensor], tag: int = 0) -> Callable[[], None]:
        """rows: for each member; into: from each; what is for itself or from itself is left alone. Returns what waits until all have come.
        tag: keeps this exchange apart from others that are under way."""
        size = sum(row.nbytes for member, row in enumerate(rows) if member != self._group.rank())
        arrives = self._link.book(size) if self._link else 0.0
        swap = swap_directly if all(row.device.type == "cpu" for row in rows) else swap_together
        with losses():
            finish = swap(self._group, rows, into, tag)
        self.sent += size

        def wait() -> None:
            with losses():
                finish()
            if self._link:
                self._link.hold(arrives)

        return wait


def swap_directly(group: ProcessGroup, rows: Sequence[Tensor], into: Sequence[Tensor], tag: int) -> Callable[[], None]:
    """A message for each row that is not empty: through gloo a half to two thirds of what its all-to-all and its all-gather take."""
    others = [member for member in range(group.size()) if member != group.rank()]
    received = [group.recv([into[other]], other, tag) for other in others if into[other].numel()]
    sent = [group.send([rows[other]], other, tag) for other in others if rows[other].numel()]

    def finish() -> None:
        for work in (*received, *sent):
            work.wait()

    return finish


def swap_together(group: ProcessGroup, rows: Sequence[Tensor], into: Sequence[Tensor], tag: int) -> Callable[[], None]:
    """One all-to-all: what NCCL does best. It knows no tags: all members begin their exchanges in the same order."""
    others = [member for member in range(group.size()) if member != group.rank()]
    sent, received = ([0 if member not in others else row.nbytes for member, row in enumerate(each)] for each in (rows, into))
    came = torch.empty(sum(received), dtype=torch.uint8, device=rows[others[0]].device)
    work = group.alltoall_base(came, torch.cat([rows[other] for other in others]), received, sent)

    def finish() -> None:
        work.wait()
        for other, row in zip(others, came.split([received[other] for other in others]), strict=True):
            into[other].copy_(row)

    return finish


@contextlib.contextmanager
def losses() -> Iterator[None]:
    """What a collective raises means that a member is gone. The others see that this one is gone when it ends, or drops the group."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(str(error)) from error
