#!/usr/bin/env python3
"""Several "hosts" on one Linux machine: network namespaces on a bridge, each with its own address and hostname.

    sudo cluster/local/hosts.py up --hosts 2          # node-0 10.77.0.1, node-1 10.77.0.2
    sudo cluster/local/hosts.py run node-1 -- ping -c 1 node-0
    sudo cluster/local/hosts.py cut node-1            # packets to and from it vanish; nobody is told
    sudo cluster/local/hosts.py heal node-1
    sudo cluster/local/hosts.py kill node-1           # as if its power failed: cut, then all processes killed
    sudo cluster/local/hosts.py down

Needs root, iproute2 and util-linux (`why-not` says what is missing). Files and devices are shared, as storage of a
cluster is; addresses, ports, hostnames and the loopback are not, and the cores are divided. Everything lives in
namespaces, the bridge too: the machine's own network is not touched, and two networks (--name) do not see each other.
`run` becomes the command, so signals and exit codes are the command's own. `down` also clears what an `up` that was
killed left behind.
Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = Path("/run/netns")  # where iproute2 keeps the names of namespaces
ETC = Path("/etc/netns")  # NAME/hosts in here is /etc/hosts for what `ip netns exec NAME` starts
SUBNET = "10.77.0"  # its first address is node-0's; nobody outside sees it
SWITCH = "switch"  # the namespace that holds the bridge


class Problem(Exception):
    """Something the user can act on; its text is the program's error message."""


def why_not() -> str | None:
    """What keeps this machine from having such hosts, in one line; None if nothing does."""
    if sys.platform != "linux":
        return f"network namespaces are of Linux, this is {sys.platform}"
    missing = [program for program in ("ip", "unshare") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not found (Debian: apt-get install iproute2 util-linux)"
    if os.geteuid() != 0:
        return "root is needed to make network namespaces (try sudo)"
    name = f"glomo-probe-{os.getpid()}"
    try:
        up(name, 1)
        _ip("netns", "exec", _space(name, "node-0"), "unshare", "--uts", "true")
    except Problem as e:
        return f"this kernel or container does not let root make them: {e}"
    finally:
        down(name)
    return None


def up(name: str, hosts: int) -> list[str]:
    """Make `hosts` namespaces on a bridge; returns their hostnames. A network of that name must not exist."""
    if hosts < 1 or hosts > 250:
        raise Problem(f"--hosts must be 1 to 250, got {hosts}")
    if networks().get(name):
        raise Problem(f"network {name} is up already; take it down first: hosts.py down --name {name}")
    nodes = [f"node-{i}" for i in range(hosts)]
    table = "".join(f"{address(node)} {node}\n" for node in nodes)
    switch = _space(name, SWITCH)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        for node in nodes:
            space, port = _space(name, node), node
            _ip("netns", "add", space)
            # loopback first: without it a host does not reach its own address either
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", space, "address", "add", f"{address(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            (ETC / space).mkdir(parents=True, exist_ok=True)
            # the hostname is not a name of the loopback (Debian's 127.0.1.1): others could not connect to it
            (ETC / space / "hosts").write_text(f"127.0.0.1 localhost\n{table}")
    except BaseException:
        down(name)
        raise
    return nodes


def run(name: str, node: str, words: list[str]) -> None:
    """Become the command on that host: in its network, with its hostname and /etc/hosts, on its share of the cores.

    Does not return. A share of cores each: ranks size their thread pools, and so round, as on a machine of their own.
    """
    _require(name, node)
    sys.stdout.flush()
    cores, hosts = sorted(os.sched_getaffinity(0)), len(_nodes(name))
    if len(cores) >= hosts:
        os.sched_setaffinity(0, cores[int(node.removeprefix("node-")) :: hosts])
    named = ["unshare", "--uts", "sh", "-c", 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"', node]
    full = ["ip", "netns", "exec", _space(name, node), *named, *words]
    os.execvp(full[0], full)


def cut(name: str, node: str) -> None:
    """Let all packets to and from the host vanish. Its link stays up: no RST, no ICMP, no carrier loss."""
    _require(name, node)
    # the cable stays in, the port is off the bridge
    _ip("-n", _space(name, SWITCH), "link", "set", node, "nomaster")


def heal(name: str, node: str) -> None:
    """Undo `cut`; connections that have not given up meanwhile go on."""
    _require(name, node)
    _ip("-n", _space(name, SWITCH), "link", "set", node, "master", "bridge")


def kill(name: str, node: str) -> None:
    """A power failure: cut the link, so that no FIN gets out, then kill -9 every process. `heal` repairs the link."""
    cut(name, node)
    _kill_processes({(NAMES / _space(name, node)).stat().st_ino})


def down(name: str) -> None:
    """Kill what runs on the hosts and remove them; does nothing where there is nothing."""
    while spaces := networks().get(name, []):
        inodes = {(NAMES / space).stat().st_ino for space in spaces if (NAMES / space).exists()}
        for space in spaces:  # names first: nothing new can enter
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
            shutil.rmtree(ETC / space, ignore_errors=True)
        _kill_processes(inodes)
        time.sleep(0.1)  # then once more: the `ip` of an `up` or a `run` that was killed may still be at work
        _kill_processes(inodes)
    with contextlib.suppress(OSError):
        ETC.rmdir()  # if we were the only user


def networks() -> dict[str, list[str]]:
    """Name of each network -> its namespaces, whole or the remains of one."""
    found: dict[str, set[str]] = {}
    for folder in (NAMES, ETC):
        for path in folder.iterdir() if folder.is_dir() else ():
            if match := re.fullmatch(rf"(.+)\.({SWITCH}|node-\d+)", path.name):
                found.setdefault(match[1], set()).add(path.name)
    return {name: sorted(spaces) for name, spaces in sorted(found.items())}


def address(node: str) -> str:
    return f"{SUBNET}.{int(node.removeprefix('node-')) + 1}"


def _space(name: str, node: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
        raise Problem(f"--name must be lower-case letters, digits and -, at most 40, got {name!r}")
    return f"{name}.{node}"


def _nodes(name: str) -> list[str]:
    return [s.rpartition(".")[2] for s in networks().get(name, []) if not s.endswith(SWITCH)]


def _require(name: str, node: str) -> None:
    if not (NAMES / _space(name, node)).exists():
        nodes = _nodes(name)
        known = f"it has {', '.join(nodes)}" if nodes else f"start it: hosts.py up --name {name} --hosts 2"
        raise Problem(f"no host {node!r} in network {name}; {known}")


def _kill_processes(inodes: set[int]) -> None:
    """Kill -9 everything in these network namespaces, until nothing is left there."""
    until = time.monotonic() + 10
    while pids := [pid for pid in _processes() if _network_of(pid) in inodes]:
        if time.monotonic() > until:
            raise Problem(f"processes {pids} do not die of SIGKILL")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _network_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:  # ended meanwhile, or a zombie
        return None


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Problem(f"`ip {' '.join(words)}` said: {done.stderr.strip() or done.returncode}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("up", "down", "run", "cut", "heal", "kill", "list", "why-not"):
        one = actions.add_parser(action)
        if action not in ("list", "why-not"):
            one.add_argument("--name", default="glomo", help="of the network (default: glomo)")
        if action == "up":
            one.add_argument("--hosts", type=int, default=2, help="how many (default: 2)")
        if action in ("run", "cut", "heal", "kill"):
            one.add_argument("node", metavar="HOST", help="node-0, node-1, ...")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, words = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    if (given.action == "run") != bool(words):
        parser.error(
            "run needs a command: hosts.py run HOST -- COMMAND ..." if not words else "unexpected --"
        )
    try:
        if given.action == "up":
            print(*(f"{node} {address(node)}" for node in up(given.name, given.hosts)), sep="\n")
        elif given.action == "run":
            run(given.name, given.node, words)
        elif given.action == "down":
            down(given.name)
        elif given.action == "list":
            for name in networks():
                print(name, *_nodes(name))
        elif given.action == "why-not":
            if reason := why_not():
                raise Problem(reason)
        else:
            {"cut": cut, "heal": heal, "kill": kill}[given.action](given.name, given.node)
    except (Problem, OSError) as e:
        sys.exit(f"hosts.py: {e}")


if __name__ == "__main__":
    main()
