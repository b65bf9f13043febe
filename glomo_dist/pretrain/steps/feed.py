"""The batches of a run, with bad shards set aside by all ranks at the same step.

RUN/quarantine.json names the shards that are set aside and the first step without each, counted from 1 as in
log.jsonl; from there other samples take their place (`Stream.set_aside`, which counts from 0). It is written before
that step is taken, so a run that is resumed does the same again; who wants a shard back in a resumed run deletes the
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glomo_dist.data import BadShard, Batch, Stream
from glomo_dist.pretrain.output import run_folder
from glomo_dist.pretrain.ranks.group import Ranks
from glomo_dist.runtime import json_files
from glomo_dist.runtime.errors import DataError, GlomoError, ShardError
from glomo_dist.runtime.formats import check_format
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted

FORMAT, VERSION = "glomo-quarantine", 2
OLD_VERSION = 1  # had from_step, counted from 0, in the place of first_step
_LIST, _AGAIN = "a list of shards that were set aside", "Delete it to begin with none."


class Feed:
    """This rank's batches of step `from_step`, `from_step` + 1, ...; every rank must take them together.

    limit: shards that may be set aside (`reading.max_bad_shards`).
    """

    def __init__(self, stream: Stream, ranks: Ranks, from_step: int, out: Path, limit: int) -> None:
        self._stream, self._ranks, self._step = stream, ranks, from_step
        self._path, self._limit = out / run_folder.QUARANTINE, limit
        self._entries: list[dict[str, Any]] = ranks.from_first(self._read)
        for entry in self._entries:
            stream.set_aside(entry["shard"], entry["first_step"] - 1)
        self._source = stream.iterate(from_step)

    def take(self, asked: bool, error: GlomoError | None) -> Batch | None:
        """The next batch, or None if any rank is asked to stop: all that ranks must agree on before a step, in a sum.

        Raises, on all ranks, the error of the first rank that has one; ShardError for one bad shard more than may be
        set aside; the GlomoError of a rank whose readers failed otherwise.
        """
        while True:
            batch, trouble = None, None
            try:
                batch = next(self._source)
            except GlomoError as e:
                trouble = e
            stop, failed, unread = self._ranks.sum([asked, error is not None, trouble is not None])
            if failed:
                self._ranks.agree_on(error)
            if stop:
                return None
            if not unread:
                self._step += 1
                return batch
            self._source.close()
            self._set_aside(trouble)
            self._source = self._stream.iterate(self._step)

    def close(self) -> None:
        self._source.close()

    def _set_aside(self, trouble: GlomoError | None) -> None:
        """Set the shards aside that ranks could not read for the next step, on disk and in the stream of every rank.

        A shard that has an entry is met again where a run is resumed from a step before that: the new one replaces
        it.
        """
        errors: list[GlomoError] = [error for error in self._ranks.gather(trouble) if error is not None]
        bad = [error for error in errors if isinstance(error, BadShard)]
        self._ranks.agree_on(next((error for error in errors if not isinstance(error, BadShard)), None))
        reasons = {error.shard: str(error) for error in reversed(bad)}
        new = [self._entry(shard, reasons[shard]) for shard in sorted(reasons)]
        entries = [*(entry for entry in self._entries if entry["shard"] not in reasons), *new]
        limit = self._limit
        if len(entries) > limit:
            more = f"{len(entries)} bad shards, reading.max_bad_shards allows {limit}: " if limit else ""
            self._ranks.agree_on(ShardError(more + " ".join(entry["reason"] for entry in new)))
        for shard in reasons:
            self._stream.set_aside(shard, self._step)

        def record() -> None:
            json_files.write_json(self._path, {"format": FORMAT, "version": VERSION, "shards": entries})
            for entry in new:
                say(
                    f"WARNING: set aside from step {entry['first_step']} on, {len(entries)} of at most {limit}: "
                    f"{entry['name']} with {counted(entry['samples'], 'sample')} "
                    f"({counted(entry['units'], 'unit')}). {entry['reason']}"
                )

        self._ranks.from_first(record)
        self._entries = entries

    def _entry(self, shard: int, reason: str) -> dict[str, Any]:
        found = self._stream.index.shards[shard]
        return {
            "name": found.name,
            "shard": shard,
            "first_step": self._step + 1,
            "samples": found.samples,
            "units": found.tokens,
            "reason": reason,
        }

    def _read(self) -> list[dict[str, Any]]:
        """The entries on disk, of an earlier part of this run."""
        path, limit = self._path, self._limit
        if not path.exists():
            return []
        value = json_files.read_json(path)
        old = isinstance(value, dict) and value.get("version") == OLD_VERSION
        check_format(value, FORMAT, OLD_VERSION if old else VERSION, path, _LIST, again=_AGAIN)
        try:
            entries = list(value["shards"])
            for entry in entries:
                for key, least in (("shard", 0), ("from_step", 0) if old else ("first_step", 1)):
                    if type(entry[key]) is not int or not least <= entry[key] < 1 << 63:
                        raise ValueError(f"{key} is {entry[key]!r}, no whole number from {least} on")
                if old:
                    entry["first_step"] = entry.pop("from_step") + 1
                if self._stream.index.shards[entry["shard"]].name != entry["name"]:
                    raise ValueError(f"shard {entry['shard']} is not {entry['name']!r}")
            if len({entry["shard"] for entry in entries}) < len(entries):
                raise ValueError("a shard is there twice")
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise DataError(f"{path}: not {_LIST} ({e}). {_AGAIN}") from None
        if len(entries) > limit:
            raise ShardError(
                f"{path} names {counted(len(entries), 'shard')} that this run has set aside, reading.max_bad_shards "
                f"allows {limit}. Allow as many, or delete the file to read them again."
            )
        return entries
