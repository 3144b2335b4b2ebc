"""What the ranks of a command tell one another before Lightning joins them, and when one is gone."""

from __future__ import annotations

import contextlib
import json
import os
import time
from datetime import timedelta
from platform import node
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pl_losses.core.jobs import Job, has_peers, jobs
from pl_losses.recipes import UsageError

WAIT = 5.0  # Seconds in which ranks that live tell so.


class Ranks:
    """The processes that torchrun or SLURM has started for one command.

    They talk through the key-value store by which torch's process group is going to find them.

    Args:
        rank: Number of this process.
        size: Number of processes.
        store: A ``torch.distributed.Store``.

    Attributes:
        nodes: Their names, by rank, once all are ready.
        ready: Whether all have said whether they can begin.
    """

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size = rank, size
        self.store = PrefixStore("pl_losses", store)
        self.nodes = [""] * size
        self.ready = False

    def jobs(self) -> list[Job]:
        """Return rank zero's jobs: another node's torchrun does not know them."""
        if self.rank == 0:
            self.store.set("jobs", json.dumps([(job.name, job.again) for job in jobs()]))
        return [Job(*one) for one in json.loads(self.store.get("jobs"))]

    def meet_anew(self) -> None:
        """Have torch make a store of its own: torchrun's still has the addresses of killed ranks."""
        if self.rank == 0:
            self.store.set("port", str(find_free_network_port()))
        os.environ["MASTER_PORT"] = self.store.get("port").decode()
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"

    def agree(self, fault: str = "", path: str | None = None) -> None:
        """Wait until all ranks can begin.

        Args:
            fault: Why this one cannot.
            path: The checkpoint that it has found.

        Raises:
            UsageError: If one cannot, or has found another checkpoint than rank zero, which says so.
            SystemExit: The same on other ranks.
        """
        self.ready = True
        self.store.set(f"start/{self.rank}", json.dumps([node(), fault, path]))
        states = [json.loads(self.store.get(f"start/{rank}")) for rank in range(self.size)]
        self.nodes = [node for node, _, _ in states]
        faults = [fault or other_path(path, states[0][2]) for _, fault, path in states]
        if not any(faults):
            return
        named: dict[str, list[int]] = {}
        for rank, fault in enumerate(faults):
            named.setdefault(fault, []).append(rank)
        self.store.set(f"read/{self.rank}", "")
        if self.rank == 0:
            self._heard("read")  # It may serve the store, and so ends last.
        alike = len(named) == 1
        text = [
            fault if alike else f"{self.named(ranks)}: {fault}" for fault, ranks in named.items() if fault
        ]
        raise self.told_by(0, "; ".join(text))

    def end(self, fault: str) -> None:
        """Tell the others why this rank ends, if they live to ask."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"end/{self.rank}", fault)

    def lost(self) -> BaseException:
        """Return what to raise where another rank is gone: one of those that are left says which."""
        self.end("")
        rest = [rank for rank in range(self.size) if rank != self.rank]
        try:
            here = self._heard("end")
            failed = {rank: self.store.get(f"end/{rank}").decode() for rank in here if rank != self.rank}
        except RuntimeError:  # The store is gone with the process that served it.
            here, failed, rest = [], {}, [0]
        silent = [rank for rank in rest if rank not in here]
        left = [self.rank, *(rank for rank, fault in failed.items() if not fault)]
        text = "the ranks have lost one another"
        if silent:
            text = f"{self.named(silent)} is gone without a word: killed, or its node is lost"
        elif ended := [f"{self.named([rank])} has ended: {fault}" for rank, fault in failed.items() if fault]:
            text = "; ".join(ended)
        return self.told_by(min(left), text)

    def _heard(self, what: str) -> list[int]:
        """Wait some seconds for word from all ranks; return those that it came from."""
        end = time.monotonic() + WAIT
        keys = {rank: f"{what}/{rank}" for rank in range(self.size)}
        while time.monotonic() < end and not self.store.check(list(keys.values())):
            time.sleep(0.05)
        return [rank for rank, key in keys.items() if self.store.check([key])]

    def told_by(self, rank: int, text: str) -> BaseException:
        """Return a usage error on one rank, and a silent end on the others."""
        return UsageError(text) if rank == self.rank else SystemExit(2)

    def named(self, ranks: list[int]) -> str:
        """Name ranks and their nodes."""
        nodes = ", ".join(dict.fromkeys(self.nodes[rank] for rank in ranks))
        return f"rank {', '.join(map(str, ranks))} of {self.size} (on {nodes})"


def join() -> Ranks | None:
    """Meet the other ranks; ``None`` if this process has none, or Lightning is going to start them."""
    if not has_peers():
        return None
    kinds = (TorchElasticEnvironment, SLURMEnvironment)  # In Lightning's order.
    try:
        environment: Any = next(kind for kind in kinds if kind.detect())()
    except RuntimeError as error:  # Of SLURM's options.
        raise UsageError(str(error)) from None
    rank, size = environment.global_rank(), environment.world_size()
    _ = environment.main_address, environment.main_port  # Under SLURM, it makes the variables of them.
    # Lightning takes the same address: within a process, torch's stores share their server.
    store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(minutes=30)))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    ranks = Ranks(rank, size, PrefixStore(attempt, store))
    if attempt != "0":
        ranks.meet_anew()
    return ranks


def other_path(path: str | None, first: str | None) -> str:
    """Say that a rank does not have the checkpoint of rank zero; empty if it has."""
    if path == first:
        return ""
    return f"expected the checkpoint `{first}` of rank 0 but found {f'`{path}`' if path else 'none'}"


def tells_of_loss(error: BaseException) -> bool:
    """Return whether an error says that another rank is gone."""
    gloo = isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    return gloo or isinstance(error, torch.distributed.DistError)
