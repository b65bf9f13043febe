"""The collector of cyclic garbage looks away where there is none, and only there."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from glomo_dist.cli import main
from glomo_dist.runtime import collector


def test_nothing_is_collected_in_the_block_and_afterwards_it_goes_on() -> None:
    frozen = gc.get_freeze_count()
    assert gc.isenabled()
    for block in (collector.resting, collector.importing):
        with pytest.raises(ImportError), block():
            with block():
                assert not gc.isenabled()
            assert not gc.isenabled()  # as the block around has it
            raise ImportError
        assert gc.isenabled()
    assert main(["plan", "--recipe", "none such"]) == 2
    assert gc.get_freeze_count() == frozen  # the process is not ours


@pytest.mark.parametrize("ours", [True, False])
def test_a_program_of_ours_frees_at_its_end_what_came_after_its_imports(ours: bool, tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        "class Freed:\n    def __del__(self): print('freed')\nfreed = Freed()\nfreed.circle = freed\n"
    )
    code = f"""
import gc, sys
from glomo_dist.cli import main
sys.argv[1:] = ["plan", "--recipe", "none such"]
main({"" if ours else "sys.argv[1:]"})
print(gc.get_freeze_count() > 1000)
sys.path.append({str(tmp_path)!r})
import later
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-2:] == [str(ours), "freed"]
