"""[data.cache]: where a host keeps what it has fetched."""

from __future__ import annotations

from pydantic import Field

from plait.spec.places import Place
from plait.spec.section import Section


class Cache(Section):
    """Where this host keeps blocks of token files that are kept in a store."""

    folder: str = Field("~/.cache/plait", description="on a disk of this host; its processes, and other runs, share it")
    gib: float = Field(16.0, gt=0, description="GiB of disk that blocks may take; what was not read lately loses its place")
    tier: Place | None = Field(None, description="a Redis or Memcached that hosts share: redis://host/0, memcached://host")
