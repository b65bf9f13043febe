"""How shards are read; nothing here changes what is read."""

from __future__ import annotations

from dataclasses import dataclass

from glomo_dist.runtime.config import MOST, MOST_PROCESSES, check_fields, check_least, check_positive
from glomo_dist.runtime.paths import output


@dataclass(frozen=True)
class Reading:
    """Readers, cache, and what happens when a shard cannot be read.

    Attributes:
        readers: Processes per rank that read ahead; 0: a thread of the rank itself.
        prefetch: Batches per rank that are ready or being read.
        cache: Folder for the checked ids of shards, shared by the ranks and runs of a machine (None: glomo/shards in
            the user's cache folder).
        cache_gb: 10^9 bytes that it may take.
        retry_seconds: How long it is tried to get a shard from an address before it counts as bad.
        max_bad_shards: Bad shards that are set aside, with other samples in their place; one more ends the run.
    """

    readers: int = 2
    prefetch: int = 4
    cache: str | None = None
    cache_gb: float = 20.0
    retry_seconds: float = 120.0
    max_bad_shards: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "reading.")
        check_least(self, "reading.", 0, "readers", most=MOST_PROCESSES)
        check_least(self, "reading.", 0, "max_bad_shards")
        check_least(self, "reading.", 1, "prefetch")
        check_positive(self, "reading.", "cache_gb", most=MOST)
        check_positive(self, "reading.", "retry_seconds")
        if self.cache is not None:
            output(self.cache, "reading.cache")
