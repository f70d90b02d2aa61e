"""Which replica of the model gets a request: of a session always the same one, of others a replica with few to do.

A request for one of several models goes to a replica that has it in memory, where there is one with room.
"""

from __future__ import annotations

import random

from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import MultiplexMixin


class SessionRouter(MultiplexMixin, ConsistentHashRouter):
    """Ray's consistent hashing for requests of sessions, and the better of two replicas for all others."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to ask, in the order of preference; Ray takes the one of a group with the shortest queue."""
        if pending_request is None or pending_request.metadata.session_id or not candidate_replicas:
            chosen: list[list[RunningReplica]] = await super().choose_replicas(candidate_replicas, pending_request)
            return chosen
        pending_request.routing_context.should_backoff = True
        if pending_request.metadata.multiplexed_model_id:
            having = self.apply_multiplex_routing(pending_request)
            candidate_replicas = [r for r in candidate_replicas if r.replica_id in having] or candidate_replicas
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

    def _get_pending_request_matching_internal_request_id(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        """Ray looks for the id alone, which all calls of one HTTP request share: the others would wait for ever."""
        waiting = (pr for pr in self._pending_requests_to_fulfill if not pr.future.done())
        return next((pr for pr in waiting if pr.metadata is request_metadata), None)
