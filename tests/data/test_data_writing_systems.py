"""Text whose words cannot be found."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from glomo_dist.data import prepare_text
from glomo_dist.data.preparing.writing_systems import uncut
from glomo_dist.data.tokenizers.text import tokenize

CHINESE = "我们今天去图书馆看书，然后回家吃饭。天气很好，我很喜欢！"
CHINESE_CUT = "我们 今天 去 图书馆 看 书 ， 然后 回家 吃 饭 。 天气 很 好 ， 我 很 喜欢 ！"
JAPANESE = "今日は図書館へ行きました。コンピューターを買いたいです。"
JAPANESE_CUT = "今日 は 図書館 へ 行き まし た 。 コンピューター を 買い たい です 。"
THAI = "วันนี้ฉันไปห้องสมุดเพื่ออ่านหนังสือ แล้วกลับบ้านกินข้าว"
THAI_CUT = "วันนี้ ฉัน ไป ห้องสมุด เพื่อ อ่าน หนังสือ แล้ว กลับ บ้าน กิน ข้าว"
ENGLISH = "We went to the library today, and then home. The weather was fine, I liked it! "


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (CHINESE, r"86 % of the characters are Chinese or Japanese.*\(6\.0 characters in"),
        (JAPANESE, "Chinese or Japanese, written without spaces"),
        (THAI, "Thai, Lao, Burmese or Khmer, written without spaces"),
        (CHINESE + ENGLISH, "Chinese or Japanese"),
        (CHINESE + ENGLISH * 9, None),
        (CHINESE_CUT, None),
        (CHINESE_CUT * 9, None),
        ("เดินทางไปเที่ยว " * 3 + "อ่านหนังสือพิมพ์ " * 2, r"Thai.*\(1\d\.\d characters in"),
        ("x" * 30 + (" " + "y" * 40) * 3, "the mean word has 38 characters"),
        ("x" * 18 + " " + "y" * 19, None),
        (JAPANESE_CUT, None),
        (THAI_CUT, None),
        (ENGLISH, None),
        ("हिन्दी में लिखा हुआ पाठ। Текст на русском языке.", None),
        ("x" * 30 + " " + "y" * 30, "the mean word has 30 characters. Is this text"),
    ],
)
def test_words_that_are_none(text: str, warning: str | None) -> None:
    counts = Counter(tokenize(text))
    said = uncut(list(counts), np.array(list(counts.values())))
    if warning is None:
        assert said is None
    else:
        assert said is not None and re.search(warning, said)


def test_preparing_warns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a", CHINESE), ("b", CHINESE_CUT)):
        (tmp_path / f"{name}.txt").write_text(text)
        out = prepare_text([str(tmp_path / f"{name}.txt")], tmp_path / name)
        said = capfd.readouterr().err
        assert ("WARNING: " in said) == (name == "a")
    prepare_text([str(tmp_path / "a.txt")], tmp_path / "c", tokenizer=out)
    assert "Cut the text into words first" in capfd.readouterr().err
