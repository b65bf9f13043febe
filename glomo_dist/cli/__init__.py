"""The program `glomo`: one subcommand per stage of the road, each in a module of its own.

Modules are imported when their command is called, so that `glomo --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from glomo_dist.cli import streams
from glomo_dist.runtime import collector, threads
from glomo_dist.runtime.errors import ConfigError, GlomoError, describe, suggest

# name -> what it does, and an example that works on one's own files
COMMANDS = {
    "prepare": ("text or images -> shards", "glomo prepare text corpus/*.jsonl.xz --out shards"),
    "pretrain": (
        "shards -> graph predictor",
        "glomo pretrain shards --out run --recipe wiki_small --ranks 2",
    ),
    "export": ("predictor + task -> graphs", "glomo export run --task sst2 --source sst2/ --out graphs/sst2"),
    "draw": (
        "predictor + your own texts -> graphs.html",
        'glomo draw glomo:wiki_small "The king returned to the city."',
    ),
    "evaluate": (
        "graphs -> one result per arm and seed",
        "glomo evaluate --tasks sst2 --sources sst2=sst2/ --arms none uniform pretrained=graphs/sst2 --out results",
    ),
    "report": ("results -> table and report.html", "glomo report results --runs run --out report.html"),
    "plan": ("what a run will cost", "glomo plan --recipe wiki_small --ranks 2 --data shards"),
    "bench": ("how fast the kernels are here", "glomo bench"),
    "doctor": ("what is here and what is missing", "glomo doctor"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error the user can act on (70, 71 and 75 for some of a
    run, see runtime/errors.py), 130 for Ctrl-C, 141 if nobody reads what is printed any more.

    argv: without the program's name; None takes `sys.argv`. Raises SystemExit as argument parsers do (0 after
    `--help`, 2 for arguments that cannot be parsed); any other exception is a bug and keeps its traceback.
    """
    streams.prepare()
    if argv is None:
        collector.this_process_is_ours()
    code = 0
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where it can fail in order
    except BrokenPipeError:
        if not streams.give_up_unread():
            raise
        return 141  # as a shell says of a program that SIGPIPE ended
    except OSError as e:
        if not streams.give_up_full(e):
            raise
        streams.complain(f"glomo: cannot write the output: {describe(e)}. Free space or send it elsewhere.")
        return code or 2
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from glomo_dist.runtime.fingerprint import code_version

        print(f"glomo {code_version()}")
        return 0
    name = arguments[0]
    threads.wait_briefly(os.environ)  # the command imports torch
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}.{suggest(name, COMMANDS)} See `glomo --help`.")
        for word in arguments:
            if "\0" in word:  # from a program that calls `main`
                raise ConfigError(f"{name}: {word!r} has a NUL character, which no name or path can have.")
        try:
            os.getcwd()
        except OSError as e:  # on which imports and paths would fail, each in its own way
            raise ConfigError(
                f"the current folder cannot be found any more ({describe(e)}). Change to one that is there."
            ) from None
        with collector.importing():
            command = importlib.import_module(f"glomo_dist.cli.{name}")
        command.main(arguments[1:])
    except GlomoError as e:
        if os.environ.get("RANK", "0") == "0" or not e.everywhere:  # torchrun's ranks share most messages
            streams.complain(f"glomo: {e}")
        return e.exit_code
    except KeyboardInterrupt:
        streams.complain("glomo: stopped.")
        return 130
    return 0


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "glomo - unsupervised pretraining of relational graphs, and their transfer to any downstream model",
        "",
        "  text, images --prepare--> shards --pretrain--> predictor --export--> graphs",
        "  report.html <--report-- results <--evaluate (arms x seeds)---------- graphs",
        "",
    ]
    for name, (purpose, example) in COMMANDS.items():
        lines += [f"  {name:<{width}}  {purpose}", f"  {'':<{width}}    $ {example}"]
    lines += [
        "",
        "`glomo COMMAND --help` explains a command and its settings, with examples. `make demo` runs them all.",
    ]
    return "\n".join(lines)
