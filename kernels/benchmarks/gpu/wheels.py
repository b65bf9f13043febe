"""What pretraining needs beside torch and numpy, as wheels for a machine without a package index.

    python -m gpu.wheels wheels [3.12]     collect them where an index is: the pinned versions, for Linux on x86-64

`use` installs them into a folder of its own and puts that in front of the search path, for this process and those it
starts; what is not brought along has to be there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu.part import ROOT, Part

FOLDER = ROOT / "wheels"
# Everything that glomo_dist.pretrain imports, and what that imports; no torch, no numpy, no triton.
NAMES = (
    "deepspeed", "einops", "hjson", "msgpack", "ninja", "packaging", "psutil", "py-cpuinfo", "pydantic",
    "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "tqdm",
    "webdataset", "braceexpand", "pyyaml", "fsspec", "zstandard", "pillow", "safetensors",
    "tensorboard", "absl-py", "protobuf", "tyro", "typeguard", "docstring-parser",
)  # fmt: skip
EXTRA = ("liger-kernel==0.8.4",)  # a peer of decoder_loss in `bench`
FROM_SOURCE = ("deepspeed",)  # its index has no wheels; without its compiled parts it is pure Python
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17, 12, 5)] + [
    "manylinux2014_x86_64",
    "any",
]


def pinned() -> list[str]:
    """name==version of every package, from constraints.txt; of two lines for one package that for new Pythons."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement, _, marker = line.partition(";")
        name, _, version = requirement.strip().partition("==")
        if version and "<" not in marker:
            found[name.lower().replace("_", "-")] = version
    if missing := [name for name in NAMES if name not in found]:
        sys.exit(f"constraints.txt does not pin {', '.join(missing)}")
    return [f"{name}=={found[name]}" for name in NAMES]


def collect(folder: Path, python: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = [wanted for wanted in pinned() if wanted.split("==")[0] in FROM_SOURCE]
    ready = [wanted for wanted in [*pinned(), *EXTRA] if wanted not in source]
    places = [word for name in PLATFORMS for word in ("--platform", name)]
    for wanted in ready:  # one by one: a package of which there is none stops no other
        command = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", python]
        done = subprocess.run([*command, *places, "-d", str(folder), wanted], check=False)
        if done.returncode:
            print(f"!!! no wheel of {wanted} for Python {python}", file=sys.stderr)
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    command = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), *source]
    subprocess.run(command, env=environment, check=True)
    size = sum(file.stat().st_size for file in folder.glob("*.whl"))
    print(f"{len(list(folder.glob('*.whl')))} wheels, {size / 1e6:.1f} MB, in {folder}")


def use(part: Part) -> None:
    """Install what is in wheels/ and put it on the search path. Without wheels all of it has to be there already."""
    wheels = sorted(FOLDER.glob("*.whl"))
    if not wheels or (part.dry and importlib.util.find_spec("deepspeed") is not None):
        return
    target = tempfile.mkdtemp(prefix="glomo-wheels-")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", target, *map(str, wheels)], check=True)
    sys.path.insert(0, target)
    # The machine's own came with torch; pydantic may want a newer one.
    sys.modules.pop("typing_extensions", None)
    os.environ["PYTHONPATH"] = os.pathsep.join([target, os.environ.get("PYTHONPATH", "")])
    importlib.invalidate_caches()
    part.note(f"{len(wheels)} wheels installed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("python", nargs="?", default="3.12")
    options = parser.parse_args()
    collect(options.folder, options.python)
