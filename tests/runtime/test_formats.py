"""Files of another format, or of another version of ours."""

import pytest

from glomo_dist.runtime.errors import CheckpointError, DataError, OtherVersion
from glomo_dist.runtime.formats import check_format

ADVICE = {"instead": "Give another.", "again": "Make it again."}


def test_what_is_read_is_given_back():
    value = {"format": "glomo-x", "version": 3, "more": 1}
    assert check_format(value, "glomo-x", 3, "a.json", "an x", **ADVICE) is value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a.json: not an x: format None, expected 'glomo-x'. Give another."),
        ({"version": 3}, "a.json: not an x: format None, expected 'glomo-x'. Give another."),
        ({"format": "glomo-y"}, "a.json: not an x: format 'glomo-y', expected 'glomo-x'. Give another."),
        ({"format": "glomo-x"}, "a.json: format version None, this program reads version 3. Make it again."),
        (
            {"format": "glomo-x", "version": "3"},
            "a.json: format version '3', this program reads version 3. Make it again.",
        ),
        (
            {"format": "glomo-x", "version": 3.0},
            "a.json: format version 3.0, this program reads version 3. Make it again.",
        ),
    ],
)
def test_what_is_not_read_is_named(value, message):
    with pytest.raises(DataError) as caught:
        check_format(value, "glomo-x", 3, "a.json", "an x", **ADVICE)
    assert str(caught.value) == message


@pytest.mark.parametrize(("value", "kind"), [({}, CheckpointError), ({"format": "glomo-x"}, OtherVersion)])
def test_another_version_may_be_an_error_of_its_own(value, kind):
    with pytest.raises(CheckpointError) as caught:
        check_format(
            value, "glomo-x", 3, "a.json", "an x", error=CheckpointError, other=OtherVersion, **ADVICE
        )
    assert type(caught.value) is kind
