"""One thing, several things."""

from glomo_dist.runtime.words import counted


def test_counted():
    assert [counted(n, "shard") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert [counted(n, "job has", "jobs have") for n in (1, 2)] == ["1 job has", "2 jobs have"]
