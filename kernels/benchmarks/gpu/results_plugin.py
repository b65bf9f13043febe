"""A plugin for pytest: one line of JSON per test, on disk when the test ends, in the file GLOMO_TEST_RESULTS.

After a test that leaves the device unusable the process ends with SPOILED: all others would fail in it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from gpu.part import SPOILED, spoiled


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or (report.when == "setup" and not report.passed) or report.failed:
        row = {
            "test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3),
            "message": "" if report.passed else str(report.longrepr)[-600:],
        }  # fmt: skip
        with open(os.environ["GLOMO_TEST_RESULTS"], "a") as file:
            file.write(json.dumps(row) + "\n")
    if report.failed and spoiled():
        print(report.longreprtext, flush=True)
        os._exit(SPOILED)
