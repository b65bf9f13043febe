"""How the threads of OpenMP wait for each other: the difference between a busy machine and a stalled run.

Threads that wait at the end of a parallel loop spin for milliseconds, in the hope of more work, before they sleep.
When another program needs one of their cores, the thread that is waited for stands in a queue behind one that spins:
a step on two cores with one of them taken took 4.3 s instead of 0.085 s. With a hundredth of the spinning it took
0.26 s there, and on the idle machine as long as before (docs/pretraining.md).
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = "3000"
_SET_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Make GNU's OpenMP, which torch's Linux builds use, spin briefly in processes with this environment.

    It reads its variables once, when torch is first imported, so for this process call it before that. What the user
    has set stays.
    """
    if not any(name in environment for name in _SET_BY_USER):
        environment["GOMP_SPINCOUNT"] = SPINS
