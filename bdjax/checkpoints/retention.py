"""The policy by which steps stay on disk."""

from collections.abc import Callable, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers


def latest_and_best(
  num_latest: int, num_best: int, loss: Callable[[int], float]
) -> checkpoint_managers.PreservationPolicy:
  """Keep the newest steps and besides them those with the lowest loss.

  Args:
    num_latest: how many of the newest.
    num_best: how many of the best.
    loss: of a step; of equal ones the newer step is better.
  """
  latest = checkpoint_managers.LatestN(num_latest)
  return checkpoint_managers.AnyPreservationPolicy(
    [latest, _LowestLoss(loss, num_best)]
  )


class _LowestLoss(checkpoint_managers.PreservationPolicy):
  """A policy that keeps the steps with the lowest loss.

  Orbax's own BestN knows the metrics of a step from before a restart only
  with a `best_fn`, and then a damaged metrics file stops the manager itself.
  """

  def __init__(self, loss: Callable[[int], float], n: int):
    self._loss = loss
    self._n = n

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: Any,
  ) -> Sequence[bool]:
    steps = [info.step for info in checkpoints]
    best = sorted(reversed(steps), key=self._loss)[: self._n]
    return [step in best for step in steps]
