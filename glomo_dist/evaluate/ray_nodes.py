"""The nodes of a Ray cluster: which there are, which are lost, and what is too large for all of them."""

from __future__ import annotations

from glomo_dist.evaluate.attempt import Job
from glomo_dist.runtime.words import counted


class Nodes:
    """The nodes of the cluster as Ray knows them now.

    cores: of all together.
    dead: ids of the nodes that Ray has given up; it does so after about a minute of silence. What waits for a job or
        a worker there would wait on, for two minutes if it was sent when nobody was there, otherwise for seven: Ray
        looks whether a connection still stands once in five minutes. (More often is not allowed: the other side takes
        it for an attack and breaks the connection.)
    lost: names of the hosts with no other node.
    """

    def __init__(self) -> None:
        import ray

        hosts: dict[bool, set[str]] = {True: set(), False: set()}
        self.dead: set[str] = set()
        self.sizes: list[tuple[float, float, float]] = []  # cores, GPUs and bytes of each
        for node in ray.nodes():
            hosts[node["Alive"]].add(node["NodeManagerHostname"])
            if node["Alive"]:
                has = node["Resources"]
                self.sizes.append((has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0)))
            else:
                self.dead.add(node["NodeID"])
        self.lost = hosts[False] - hosts[True]
        self.cores = sum(cores for cores, _, _ in self.sizes)

    def too_small(self, job: Job) -> str:
        """Why no node could take the job even if it had nothing else to do; empty if one could."""
        asks = job.cores, job.gpus, (job.memory_gb or 0) * 1e9
        if any(all(has >= n for has, n in zip(node, asks, strict=True)) for node in self.sizes):
            return ""
        cores, gpus, size = map(max, zip((0.0, 0.0, 0.0), *self.sizes, strict=True))
        asked, most = [counted(job.cores, "core")], counted(int(cores), "core")
        if job.gpus:
            asked.append(f"{job.gpus:g} GPU")
            most += f", {counted(int(gpus), 'GPU')}"
        if job.memory_gb is not None:
            asked.append(f"{job.memory_gb:g} GB of memory")
        return (
            f"job {job.id} asks for {' and '.join(asked)}, more than any node of Ray has "
            f"(there are {len(self.sizes)}, with {most} and {size / 1e9:.1f} GB at most)"
        )
