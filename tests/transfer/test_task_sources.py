"""Where task files lie: at an address of a server in trouble, with a query, in an archive."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import tarfile
import threading
import time
import zipfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import web_faults as faults
from transfer_samples import write_sst2
from web_faults import serving

from glomo_dist.data.preparing.sources import documents
from glomo_dist.data.storage import patience
from glomo_dist.runtime.errors import DataError
from glomo_dist.transfer.datasets.sources import address_parts, joined
from glomo_dist.transfer.features.word_vectors import WordVectors
from glomo_dist.transfer.registry import get_task


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path, _, query = self.path.partition("?")
        codes = self.server.codes.get(path.rpartition("/")[2], [])
        if codes or query != self.server.query:
            return self.send_error(codes.pop(0) if codes else 403)
        return super().do_GET()


@pytest.fixture
def web(tmp_path):
    """A server of tmp_path. codes: by file name, what the next requests are answered; query: what each must have."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))
    )
    server.codes, server.query = {}, ""
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def write_race(folder):
    folder.mkdir()
    article = {"questions": ["what ?"], "options": [["a", "b", "c", "d"]], "answers": ["A"]}

    def rows(name, parts):
        made = [{"article": f"{name} {i}", "part": part, **article} for i, part in enumerate(parts)]
        (folder / f"race_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))

    for level in ("middle", "high"):
        rows(f"train_{level}", ["train"] * 2)
        rows(f"dev_{level}", ["dev", "test"])
    rows("train_extra", ["train"] * 5)
    return folder


def test_a_server_in_trouble_drops_no_optional_file(tmp_path, web, monkeypatch, capsys):
    local = get_task("race").load(str(write_race(tmp_path / "race")), None)
    assert len(local.splits["train"].labels) == 9
    source = f"{web.address}/race"
    web.codes = {"race_train_extra.jsonl": [503], "race_train_middle.jsonl": [500]}
    assert get_task("race").load(source, None).fingerprint == local.fingerprint
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 5)
    web.codes = {"race_train_extra.jsonl": [503] * 9}
    with pytest.raises(DataError, match=r"race_train_extra\.jsonl cannot be read: .*503.*\(6 tries\)"):
        get_task("race").load(source, None)
    # a bucket that may not be listed says 403 for what it does not have
    capsys.readouterr()
    web.codes = {"race_train_extra.jsonl": [403]}
    assert len(get_task("race").load(source, None).splits["train"].labels) == 4
    assert "refuses (403) race_train_extra.jsonl; taken as not there" in capsys.readouterr().err


def test_a_connection_that_breaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 5)
    local = get_task("sst2").load(write_sst2(tmp_path / "sst2", (2000, 80, 80)), None)
    with serving(tmp_path) as web:
        for web.parts in (True, False):
            ordinary = [lambda handler, content: faults.send(handler, content)] * 1  # whether it is there
            web.faults = {"sst2/train.tsv": [*ordinary, faults.cut_after(30_000), faults.code(503)]}
            assert get_task("sst2").load(f"{web.address}/sst2", None).fingerprint == local.fingerprint
            assert not web.faults["sst2/train.tsv"]
            assert "train.tsv: connection lost after 30,000 bytes, trying again" in capsys.readouterr().err
        assert web.ranges == ["bytes=30000-"] * 4
        web.faults["sst2/train.tsv"] = [*ordinary, faults.cut_after(30_000)]
        web.always["sst2/train.tsv"] = faults.server_error
        with pytest.raises(
            DataError, match=r"train\.tsv cannot be read: .*503.*\(6 tries after 30,000 bytes\)"
        ):
            get_task("sst2").load(f"{web.address}/sst2", None)


def test_a_folder_of_texts_at_a_server_in_trouble(tmp_path, web, monkeypatch):
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 5)
    write_imdb(tmp_path / "imdb")
    local = get_task("imdb").load(str(tmp_path / "imdb"), None)
    web.codes = {"3.txt": [503, 500], "17.txt": [429], "": [503]}
    assert get_task("imdb").load(f"{web.address}/imdb", None).fingerprint == local.fingerprint
    assert not any(web.codes.values())
    web.codes = {"3.txt": [503] * 9}
    with pytest.raises(DataError, match=r"3\.txt cannot be read: .*503.*\(6 tries\)"):
        get_task("imdb").load(f"{web.address}/imdb", None)


def test_no_file_of_a_pattern_is_left_out_by_a_server_in_trouble(tmp_path, web, monkeypatch):
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 5)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    web.codes = {"b.txt": [503], "": [503]}  # the last for the folder
    assert [d.text for d in documents([f"{web.address}/*.txt"])] == ["a", "b", "c"]
    assert not any(web.codes.values())


def test_a_server_that_is_not_there(monkeypatch):
    """Whether it has a file is asked as the file itself is: a host that never answered is not waited for."""
    monkeypatch.setattr(patience, "_reached", set())
    began = time.monotonic()
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x/train\.tsv cannot be read"):
        get_task("sst2").load("http://127.0.0.1:9/x", None)
    assert time.monotonic() - began < 5


def write_imdb(folder):
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            (folder / split / name).mkdir(parents=True)
            for i in range(20):
                (folder / split / name / f"{i}.txt").write_text(f"{split} {name} film {i}")


def test_tasks_and_vectors_with_a_query_and_in_archives(tmp_path, web):
    write_sst2(tmp_path / "sst2")
    write_imdb(tmp_path / "imdb")
    write_race(tmp_path / "race")
    np.savez(tmp_path / "v.npz", words=np.array(["the"]), vectors=np.eye(1, 5))
    files = [path for path in tmp_path.rglob("*.*") if path.is_file()]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in files:
            archive.write(path, path.relative_to(tmp_path))
    web.query = "token=s"
    assert WordVectors.load(f"{web.address}/v.npz?token=s").width == 5
    for task in ("sst2", "imdb", "race"):
        local = get_task(task).load(str(tmp_path / task), None)
        for source in (f"{web.address}/{task}?token=s", f"zip://{task}::{tmp_path}/all.zip"):
            assert get_task(task).load(source, None).fingerprint == local.fingerprint


def test_an_archive_of_a_server_without_parts_of_a_file(tmp_path, web):
    write_sst2(tmp_path / "sst2")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "sst2").iterdir():
            archive.write(path, path.name)
    with pytest.raises(
        DataError, match=r"all\.zip: the server gives no parts of a file, .* Download the archive"
    ):
        get_task("sst2").load(f"zip://::{web.address}/all.zip", None)


@pytest.mark.parametrize("task", ["imdb", "race"])
def test_texts_in_a_packed_archive_are_read_in_its_order(tmp_path, monkeypatch, task):
    """By name each step back in gzip began at the start: hours for all of IMDB. The examples stay in their order."""
    folder, back, opened = tmp_path / task, [], []
    if task == "imdb":
        write_imdb(folder)
    else:
        for path in (
            f"{split}/{level}" for split in ("train", "dev", "test") for level in ("middle", "high")
        ):
            (folder / path).mkdir(parents=True)
            for i in range(20):
                article = {"article": f"{path} {i}", "questions": ["what ?"], "answers": ["A"]}
                (folder / path / f"{i}.txt").write_text(
                    json.dumps({**article, "options": [["a", "b", "c", "d"]]})
                )
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        for path in sorted(folder.rglob("*.txt"), key=lambda path: (int(path.stem) * 7 % 20, path)):
            archive.add(path, path.relative_to(tmp_path))

    class Unpacked(gzip.GzipFile):
        def __init__(self, file, **options):
            super().__init__(fileobj=file)
            opened.append(self)

        def seek(self, offset, whence=0):
            if whence == 0 and offset < self.tell():
                back.append(offset)
            return super().seek(offset, whence)

    def searched(archive, name):
        raise AssertionError(f"{name} is looked for among all members, which for n texts takes n² steps")

    monkeypatch.setitem(fsspec.compression.compr, "gzip", Unpacked)
    monkeypatch.setattr(tarfile.TarFile, "getmember", searched)
    data = get_task(task).data(f"tar://{task}::{tmp_path}/all.tar.gz", None)
    folders = len({path.parent for path in folder.rglob("*.txt")})
    assert len(back) == folders and len(opened) == 1  # to the first text of each
    assert data.fingerprint == get_task(task).load(str(folder), None).fingerprint


def test_a_set_of_the_hub_by_its_address(tmp_path, web):
    """No folder can be listed there, so that a split is expected to be one file."""
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation", "test"):
        table = pa.table({"sentence": [f"{split} is fine", "no"], "label": [1, 0]})
        pq.write_table(table, tmp_path / f"sst2/{split}-00000-of-00001.parquet")
    local = get_task("sst2").load(str(tmp_path / "sst2"), None)
    web.query = "token=s"
    for address in (f"{web.address}/sst2?token=s", f"{web.address}?token=s"):
        assert get_task("sst2").load(address, None).fingerprint == local.fingerprint


def test_race_folders_at_the_top_of_an_archive(tmp_path):
    article = {"article": "a b", "questions": ["what ?"], "options": [["a", "b", "c", "d"]], "answers": ["A"]}
    with zipfile.ZipFile(tmp_path / "RACE.zip", "w") as archive:
        for split in ("train", "dev", "test"):
            for level in ("middle", "high"):
                archive.writestr(f"{split}/{level}/1.txt", json.dumps(article))
    data = get_task("race").load(f"zip://::{tmp_path}/RACE.zip", None)
    assert {len(split.labels) for split in data.splits.values()} == {2}


@pytest.mark.parametrize(
    ("folder", "file", "follows"),
    [
        ("data/SST-2", "data/SST-2/x", ""),
        ("data/SST-2/", "data/SST-2/x", ""),
        ("data/what?", "data/what?/x", ""),
        ("http://h/d?token=s", "http://h/d/x?token=s", "?token=s"),
        ("zip://d::http://h/all.zip?t=s", "zip://d/x::http://h/all.zip?t=s", "::http://h/all.zip?t=s"),
        ("zip://::all.zip", "zip://x::all.zip", "::all.zip"),
        ("simplecache::http://h/d", "simplecache::http://h/d/x", ""),
        ("", "x", ""),
    ],
)
def test_joined_addresses(folder, file, follows):
    assert joined(folder, "x") == file
    assert address_parts(file) == (file.removesuffix(follows), follows)


def test_what_is_wrong_with_a_source_is_said(tmp_path, monkeypatch):
    """Not only that its files were not found; what is proposed works."""

    def said(source):
        with pytest.raises(DataError) as caught:
            get_task("sst2").load(source, None)
        return str(caught.value)

    monkeypatch.chdir(tmp_path)
    write_sst2(tmp_path / "SST-2", (4, 2, 2))
    names = "one of train.tsv, sst2_train.jsonl, train.jsonl, data/train.jsonl, sst2/train.jsonl (or packed: "
    names += ".gz .xz .zst)"
    assert f"task 'sst2': nowhere does not exist; expected the folder with {names}, train.parquet" in said(
        "nowhere"
    )
    (tmp_path / "a::b").mkdir()
    assert f"{tmp_path / 'a::b'} is read as a chained address, as zip://" in said(str(tmp_path / "a::b"))
    assert "memory://nowhere does not exist" in said("memory://nowhere")
    assert "SST-2/train.tsv is a file; give the folder that has" in said("SST-2/train.tsv")
    (tmp_path / "empty").mkdir()
    assert "empty has none of train.tsv, sst2_train.jsonl" in said("empty")
    with tarfile.open("a.tar.gz", "w:gz") as archive:
        archive.add("SST-2")
    (tmp_path / "a.tgz").write_bytes((tmp_path / "a.tar.gz").read_bytes())
    with zipfile.ZipFile("flat.zip", "w") as archive:
        for name in ("train.tsv", "dev.tsv", "test.tsv"):
            archive.write(f"SST-2/{name}", name)
    for name in ("a.tar.gz", "a.tgz"):
        assert f"{name} is an archive. Give tar://FOLDER::{name}, " in said(name)
    assert "are in none, zip://::flat.zip." in said("flat.zip")
    local = get_task("sst2").load("SST-2", None).fingerprint
    for source in ("tar://SST-2::a.tar.gz", "tar://SST-2::a.tgz", "zip://::flat.zip"):
        assert get_task("sst2").load(source, None).fingerprint == local
    with tarfile.open("dotted.tar", "w") as archive:
        archive.add("SST-2", "./SST-2")
    dotted = said("tar://SST-2::dotted.tar")
    assert "does not exist" in dotted and "tar://./FOLDER" in dotted
    assert get_task("sst2").load("tar://./SST-2::dotted.tar", None).fingerprint == local


def test_over_http_a_split_in_several_files_is_told_what_to_do(tmp_path, web):
    """The number of files is in their names, and a folder cannot be listed there."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train-00000-of-00002.parquet").touch()
    with pytest.raises(DataError, match=r"has none of .* give a copy on disk, or hf://datasets/OWNER/NAME"):
        get_task("sst2").load(f"{web.address}/set", None)
