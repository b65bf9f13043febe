"""Paths that mean the same in every folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from glomo_dist.runtime.errors import ConfigError
from glomo_dist.runtime.paths import absolute, output


@pytest.mark.parametrize(
    "place, expected",
    [
        ("sst2/", "{here}/sst2"),
        ("~/sst2", "{home}/sst2"),
        ("/data/sst2", "/data/sst2"),
        ("a::b", "{here}/a::b"),
        ("s3://bucket/sst2", "s3://bucket/sst2"),
        ("zip://x::all.zip", "zip://x::{here}/all.zip"),
        ("zip://x::~/all.zip", "zip://x::{home}/all.zip"),
        ("zip://x::/data/all.zip", "zip://x::/data/all.zip"),
        ("~nobody-here/sst2", "{here}/~nobody-here/sst2"),
        ("~backup.txt", "{here}/~backup.txt"),
        ("zip://::tar://a.zip::all.tar", "zip://::tar://a.zip::{here}/all.tar"),
        ("zip://x::https://host/all.zip", "zip://x::https://host/all.zip"),
        ("simplecache::https://host/sst2", "simplecache::https://host/sst2"),
    ],
)
def test_absolute(tmp_path, monkeypatch, place, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute(place) == expected.format(here=tmp_path, home="/home/me")
    assert absolute(absolute(place)) == absolute(place)


@pytest.mark.parametrize("place", ["runs/s3:/a", "/runs/a::b", "./s3:/a", Path("/s3:/a")])
def test_an_output_is_a_path(place):
    assert output(place) == Path(place)


@pytest.mark.parametrize(
    "place", [Path("s3://bucket/out"), "file:///out", "git+ssh://x/out", "simplecache::s3://bucket/out"]
)
def test_an_address_is_no_output(place):
    with pytest.raises(ConfigError, match=r"output .*out is an address\. Give a path"):
        output(place)
