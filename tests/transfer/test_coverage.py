"""How many words are unknown, counted in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from glomo_dist.transfer.features import coverage
from glomo_dist.transfer.features.coverage import Unknown, percent, unknown


def test_unknown_words_of_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are counted at a time, empty ones among them: each occurrence counts, and each word once."""
    monkeypatch.setattr(coverage, "TOGETHER", 100)
    texts = [np.array([0, 1, 2][: i % 4], np.int32) for i in range(203)]
    known = np.array([False, True, True, False, True])
    words = sum(len(text) for text in texts)
    zeros = sum(len(text) > 0 for text in texts)
    assert unknown(iter(texts), known) == Unknown(zeros / words, 1 / 3)
    assert unknown([], known) == Unknown(0.0, 0.0)
    assert unknown([np.array([0, 0, 3, 4])], known) == Unknown(0.75, 2 / 3)
    assert percent(0.1234) == "12.34 %"
