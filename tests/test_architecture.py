"""Which part may know which: imports go one way, without cycles, also those inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"glomo_kernels": ROOT / "kernels" / "glomo_kernels", "glomo_dist": ROOT / "glomo_dist"}

# Each part of a package may import itself and the parts before it.
LAYERS = {
    "glomo_dist": (
        "runtime",
        "data",
        "model",
        "pretrain",
        "graphs",
        "transfer",
        "evaluate",
        "report",
        "recipes",
        "cli",
    ),
    "glomo_dist.data": ("storage", "tokenizers", "preparing", "shards", "reading", "prepare", "bench"),
    "glomo_dist.pretrain": (
        "settings",
        "ranks",
        "output",
        "steps",
        "cost",
        "loop",
        "worker",
        "launch",
        "__main__",
        "torchrun",
        "bench",
    ),
    "glomo_dist.transfer": (
        "ancestor",
        "readers",
        "datasets",
        "features",
        "tasks",
        "registry",
        "job",
        "result",
        "training",
        "predictor",
        "export",
        "finetune",
    ),
}
# Of these none may import the other.
STRANGERS = [
    {"glomo_dist.data", "glomo_dist.model"},
    {"glomo_dist.data.storage", "glomo_dist.data.tokenizers"},
    {"glomo_dist.data.preparing", "glomo_dist.data.shards"},
    {"glomo_dist.data.preparing", "glomo_dist.data.reading"},
    {"glomo_dist.pretrain.settings", "glomo_dist.pretrain.ranks"},
    {"glomo_dist.transfer.features", "glomo_dist.transfer.tasks"},
]
LONGEST_FILE = 500  # lines; a longer one says why it is one thing, in its docstring, with the word "lines"


def modules(package: str) -> dict[str, Path]:
    """Name -> file of all modules of a package."""
    found = {}
    for path in sorted(FOLDERS[package].rglob("*.py")):
        parts = path.relative_to(FOLDERS[package]).with_suffix("").parts
        name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        found[name] = path
    return found


ALL = {name: path for package in FOLDERS for name, path in modules(package).items()}


def imported_names(path: Path, module: str) -> set[str]:
    """Full names of everything the file imports, wherever in it; `from a import b` gives a.b."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def own_module(name: str) -> str | None:
    """The longest prefix of `name` that is one of our modules."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in ALL:
            return ".".join(parts[:end])
    return None


def module_graph() -> dict[str, set[str]]:
    """Module -> our modules that it imports. A package's own __init__ naming its submodules is not a cycle,
    as the submodules do not name the package; `from . import x` therefore counts as importing x only."""
    graph = {}
    for name, path in ALL.items():
        targets = {own_module(imported) for imported in imported_names(path, name)}
        graph[name] = {t for t in targets if t is not None and t != name}
    return graph


GRAPH = module_graph()


def layer(module: str, package: str) -> str | None:
    """The part of `package` that the module is or lies in; None for the package itself and what is elsewhere."""
    below = module.removeprefix(f"{package}.")
    return below.partition(".")[0] if below != module else None


def test_the_scan_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from glomo_dist.report import build\n    import glomo_dist.cli as c\n")
    assert {own_module(n) for n in imported_names(file, "glomo_dist.data.module")} == {
        "glomo_dist.report.build",
        "glomo_dist.cli",
    }
    assert len(ALL) > 50 and sum(map(len, GRAPH.values())) > 100


def test_kernels_import_nothing_of_ours() -> None:
    for module, imported in GRAPH.items():
        if module.split(".")[0] == "glomo_kernels":
            wrong = {m for m in imported if m.split(".")[0] != "glomo_kernels"}
            assert not wrong, f"{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", LAYERS)
def test_layers_go_one_way(package: str) -> None:
    layers = LAYERS[package]
    assert {layer(module, package) for module in ALL} - {None} == {*layers}, (
        "LAYERS has all parts, each at its place"
    )
    for module, imported in GRAPH.items():
        for other in imported:
            mine, theirs = layer(module, package), layer(other, package)
            if mine is None or theirs is None:
                continue
            assert layers.index(theirs) <= layers.index(mine), f"{module} imports {other}: backwards"
            pair = {f"{package}.{mine}", f"{package}.{theirs}"}
            assert pair not in STRANGERS, f"{module} imports {other}: they must not know each other"


def test_every_package_with_packages_in_it_has_its_layers() -> None:
    inner = [
        name for name, path in ALL.items() if path.name == "__init__.py" and name.startswith("glomo_dist.")
    ]
    assert {name.rpartition(".")[0] for name in inner} == {*LAYERS}


def test_no_cycles() -> None:
    TopologicalSorter(GRAPH).prepare()  # raises CycleError with the path


def test_importing_the_kernels_is_light() -> None:
    """In a fresh process: no CUDA context, no Triton, no compiled code, no compiling."""
    code = (
        "import sys, glomo_kernels, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('triton', 'deepspeed', 'ray', 'glomo_dist')"
        " or m.startswith(('torch.utils.cpp_extension', 'glomo_kernels._'))]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from glomo_dist.cli import main\n"
        "assert main(['--help']) == 0\n"
        "bad = {'torch', 'numpy', 'ray', 'deepspeed', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_no_help_waits_for_pytorch() -> None:
    """Of a command by itself, in one process for all."""
    code = (
        "import contextlib, sys\n"
        "from glomo_dist.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([name, '--help'])\n"
        "    bad = {'torch', 'ray', 'deepspeed', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "    assert not bad, (name, bad)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and done.stdout.count("usage: glomo") == 9, done.stderr


def test_preparing_and_starting_a_run_do_without_pytorch() -> None:
    """Three seconds and 200 MB: the ranks load it, and most mistakes are told before there are any. Nor do
    mistakes on the command line of an evaluation or a report wait for it."""
    code = (
        "import sys\n"
        "from glomo_dist.cli import main\n"
        "import glomo_dist.pretrain.launch\n"
        "assert main(['pretrain', 'nowhere', '--recipe', 'ancestor_text', '--out', 'nothing']) == 2\n"
        "assert main(['prepare', 'text', 'nowhere', '--out', 'nothing']) == 2\n"
        "assert main(['report']) == 2\n"
        "assert main(['evaluate', '--out', 'nothing', '--tasks', 'sst2', '--arms', 'pretrained']) == 2\n"
        "assert main(['evaluate', '--out', 'nothing', '--lr', '-1']) == 2\n"
        "bad = {'torch', 'ray', 'deepspeed', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0 and "nowhere" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ALL)
def test_file_is_of_readable_length(name: str) -> None:
    text = ALL[name].read_text(encoding="utf-8")
    count = text.count("\n")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert count <= LONGEST_FILE or "lines" in docstring, (
        f"{name} has {count} lines: split it, or say in its docstring why so many lines are one thing"
    )


def test_every_package_is_installed() -> None:
    listed = set(read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["packages"])
    there = {name for name, path in ALL.items() if path.name == "__init__.py"}
    assert listed == there, "pyproject.toml, [tool.setuptools] packages, must list every package"
    for folder in FOLDERS.values():
        bare = {p.parent for p in folder.rglob("*.py")} - {p.parent for p in folder.rglob("__init__.py")}
        assert not bare, f"folders with modules and without __init__.py: {sorted(map(str, bare))}"


def test_a_source_distribution_has_what_readers_and_type_checkers_look_for(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    (sources,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    listed = {line.removeprefix("./") for line in sources.read_text().splitlines()}
    plans = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/plans").iterdir()}
    typed = {str(folder.relative_to(ROOT) / "py.typed") for folder in FOLDERS.values()}
    assert plans and plans | typed | {"constraints.txt"} <= listed


def test_constraints_pin_every_dependency() -> None:
    project = read_configuration(ROOT / "pyproject.toml")["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for requirement in needed:
        name = requirement.split(">")[0].split("[")[0].lower()
        assert name in pinned, f"constraints.txt does not pin {name}"


def test_names_that_benchmarks_take_from_the_package_are_there() -> None:
    """They import inside of functions, some of which run on a GPU alone."""
    missing = []
    for path in sorted((ROOT / "kernels" / "benchmarks").rglob("*.py")):
        for scope in ast.walk(ast.parse(path.read_text())):
            if not isinstance(scope, ast.FunctionDef):
                continue
            nodes, taken = list(ast.walk(scope)), {}
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("glomo_"):
                    try:
                        exec(ast.unparse(node), taken)
                    except ImportError as e:
                        missing.append(f"{path.name}: {e}")
            for node in nodes:
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    home = taken.get(node.value.id)
                    if isinstance(home, ModuleType) and not hasattr(home, node.attr):
                        missing.append(f"{path.name}: {ast.unparse(node)}")
    assert not missing
