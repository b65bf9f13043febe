"""Folders of pretraining runs with a chosen log."""

from __future__ import annotations

import json


def run_folder(folder, rows):
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "config": {},
                "ranks": 2,
                "code": "0.1.0",
                "command": "glomo pretrain shards --out run",
                "data": {"folder": "/x/shards", "fingerprint": "f00d"},
            }
        )
    )
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def log_row(step, **fields):
    return {
        "step": step,
        "loss": 5.0 - 0.1 * step,
        "seconds": 0.5,
        "empty_rows": [[0.1, 0.2], [0.3, 0.4]],
        **fields,
    }
