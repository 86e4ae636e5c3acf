"""Serve by several replicas until told to stop."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from regraft.engine.engine import default_threads
from regraft.progress import Progress
from regraft.server.cluster.deploy import deployed
from regraft.server.cluster.front import Front
from regraft.server.cluster.plan import Plan
from regraft.server.run import Server, hosts_of


def serve_replicas(plan: Plan, num_replicas: int, listener: socket.socket, progress: Progress) -> None:
    """Start the replicas, and hand them what comes.

    Args:
        plan: what each serves; paths may be relative here.
        num_replicas: how many.
        listener: see :func:`regraft.server.run.listen`.
        progress: told of a first packing.

    Raises:
        UsageError, FormatError, CapacityError: the base cannot be served.
        RegraftError: the replicas do not start.
    """
    plan = _checked(plan, num_replicas, progress)
    with deployed(plan, num_replicas) as replicas:
        front = Front(replicas, plan.settings, hosts_of(listener), base_name=plan.base_name or "")
        Server(
            front,
            listener,
            plan.settings,
            end_answers=front.end_all,
            describe=lambda: f"{plan.base_name} by {num_replicas} replicas",
        ).run()


def _checked(plan: Plan, num_replicas: int, progress: Progress) -> Plan:
    """The plan with what is the same for all; the base is opened once here, so that it is packed and fits."""
    with plan.engine(progress) as engine:
        name = plan.base_name or engine.base.name
    base = str(Path(plan.base).resolve()) if Path(plan.base).exists() else plan.base
    threads = plan.threads or max(1, default_threads() // num_replicas)
    adapters = plan.adapters and plan.adapters.resolve()
    return replace(plan, base=base, base_name=name, adapters=adapters, threads=threads)
