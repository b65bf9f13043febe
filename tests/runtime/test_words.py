"""One thing, several things."""

from glomo_dist.runtime.errors import DataError
from glomo_dist.runtime.progress import say
from glomo_dist.runtime.words import counted


def test_counted():
    assert [counted(n, "shard") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert [counted(n, "job has", "jobs have") for n in (1, 2)] == ["1 job has", "2 jobs have"]


def test_a_message_does_not_move_the_cursor(capsys):
    """Of a line that ends by a bare carriage return only the end would be seen; a file may also hold a terminal's
    commands."""
    text = "train.tsv, line 1:\tgot a\rb\x1b[2Jc\x00\u202ed é.\nMend it."
    seen = "train.tsv, line 1:\tgot a\\rb\\x1b[2Jc\\x00\\u202ed é.\nMend it."
    say(text)
    assert str(DataError(text)) == seen
    assert capsys.readouterr().err == f"{seen}\n"
