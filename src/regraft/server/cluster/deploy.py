"""Ray: its start, the replicas' deployment, and the calls that reach them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import Message

from regraft.engine.engine import default_threads
from regraft.errors import RegraftError
from regraft.local_ray import started
from regraft.server.cluster.forward import Forwarded
from regraft.server.cluster.front import ReplicaDied
from regraft.server.cluster.plan import Plan
from regraft.server.cluster.replica import Replica

NAME = "regraft"
_WHOLE_S = 10.0  # for an answer of all replicas


class RayReplicas:
    """The replicas of a deployment.

    Args:
        handle: of the deployment.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def stream(self, forwarded: Forwarded, adapter: str) -> AsyncGenerator[list[Message]]:
        """The answer of a replica that had the adapter last, or else of the least busy one; raises ReplicaDied."""
        answer = self._handle.options(stream=True, multiplexed_model_id=adapter).answer.remote(forwarded)
        is_whole = False
        try:
            async for messages in answer:
                yield messages
            is_whole = True
        except (RayError, RayServeException) as error:
            if isinstance(error, TaskCancelledError):
                raise asyncio.CancelledError from None
            raise ReplicaDied from error
        finally:
            if not is_whole:
                answer.cancel()

    async def all(self, forwarded: Forwarded) -> list[list[Message]]:
        """The answers of all that live."""
        response = self._handle.broadcast("whole", forwarded)
        found = await response.results_async(timeout_s=_WHOLE_S, return_exceptions=True)
        return [answer for answer in found if not isinstance(answer, BaseException)]


@contextmanager
def deployed(plan: Plan, num_replicas: int) -> Iterator[RayReplicas]:
    """Replicas for as long as the context lasts, on this machine or on the cluster that ``RAY_ADDRESS`` names.

    Raises:
        RegraftError: they do not start.
    """
    threads = plan.threads or default_threads()
    with started(num_replicas * threads):
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=num_replicas,
            max_ongoing_requests=2 * plan.settings.max_answers,  # above its own limit, so that it says 429
            ray_actor_options={"num_cpus": threads},
            health_check_period_s=2,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=5,
        )
        try:
            yield RayReplicas(_run(deployment.bind(plan)))
        finally:
            if "RAY_ADDRESS" in os.environ:  # where Ray goes on without us
                serve.delete(NAME)


def _run(application: Any) -> DeploymentHandle[Any]:
    try:
        return serve.run(application, name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise RegraftError(f"the replicas do not start: {error}", hint="Ray's logs are in /tmp/ray.") from None
