"""From typed dataclasses to a command line (by tyro), and back to a record of what was run."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import arg

from glomo_dist.runtime.errors import ConfigError, suggest
from glomo_dist.runtime.files import COMMAND_FILE, remove_leftovers, write_bytes
from glomo_dist.runtime.fingerprint import code_version
from glomo_dist.runtime.json_files import json_bytes
from glomo_dist.runtime.secrets import shown_in


def parse(cls: Any, argv: Sequence[str], *, name: str, description: str | None, default: Any = None) -> Any:
    """An instance of `cls` (a dataclass, or a union of them: subcommands) from `argv`.

    default: an instance whose values stand where `argv` has none; `tyro.MISSING` marks required ones.
    Raises SystemExit(2) for unknown flags (with near names) and values of the wrong type, SystemExit(0) for --help;
    ConfigError for a flag of several values that is given twice, as the parser would forget the first ones. Of a flag
    of one value the last one holds, as elsewhere.
    """
    given = Counter(word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--"))
    for flag, times in given.items():
        if times > 1 and flag.rpartition(".")[2].removeprefix("--") in _lists(cls):
            raise ConfigError(f"{name}: {flag} is given {times} times. Give it once, with all its values.")
    return tyro.cli(
        cls,
        args=list(argv),
        prog=f"glomo {name}",
        description=inspect.cleandoc(description or ""),
        default=tyro.MISSING_NONPROP if default is None else default,
    )


def shown_as(words: str, metavar: str | None = None) -> Any:
    """What stands in --help in the place of a default that says nothing: None for what is decided later, or for an
    empty list of what is required."""
    return arg(metavar=metavar, help_behavior_hint=f"({words})")


def _lists(cls: Any) -> set[str]:
    """Flags that take several values, of a dataclass, the dataclasses in it, or a union of them."""
    if not dataclasses.is_dataclass(cls):
        return set().union(*map(_lists, get_args(cls)))
    hints = get_type_hints(cls)
    several = {name.replace("_", "-") for name, hint in hints.items() if get_origin(hint) is tuple}
    return several.union(*map(_lists, filter(dataclasses.is_dataclass, hints.values())))


def recipe_of(argv: Sequence[str], default: str) -> str:
    """The value of --recipe, the last one as of any flag given twice: it chooses the defaults of all other settings,
    so it is looked for first."""
    found = default
    for i, word in enumerate(argv):
        if word == "--recipe":
            if i + 1 == len(argv):
                raise ConfigError("--recipe: the name of a recipe is missing after it.")
            found = argv[i + 1]
        elif word.startswith("--recipe="):
            found = word.partition("=")[2]
    return found


def pairs(flag: str, values: Sequence[str], form: str, others: Sequence[str] = ()) -> dict[str, str]:
    """{"a": "x"} of ("a=x",); ConfigError for anything else, with the `form` that was expected and the `others` that
    the flag takes."""
    found: dict[str, str] = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not (key and equals and content):
            known = suggest(value, others) if others else ""
            raise ConfigError(f"{flag}: expected {form}, got {value!r}.{known}")
        if key in found:
            raise ConfigError(f"{flag}: {key!r} is given twice.")
        found[key] = content
    return found


def command_file(name: str, arguments: Any) -> bytes:
    """What `COMMAND_FILE` is in a folder: the resolved arguments of the command that made it, secrets left out."""
    return json_bytes(
        {"command": name, "arguments": shown_in(dataclasses.asdict(arguments)), "code": code_version()}
    )


def save_command(folder: str | Path, name: str, arguments: Any) -> None:
    """Write the `command_file` into a folder that is there."""
    remove_leftovers(Path(folder), f"{COMMAND_FILE}.*")  # of one that was killed
    write_bytes(Path(folder) / COMMAND_FILE, command_file(name, arguments))
