"""The pruning curve in PyTorch, one point after the other."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.pytorch.device import precision, put, put_images, synchronized


def point_by_point(
  net: Any, task: Any, masks: Any
) -> Callable[[], list[tuple[float, float]]]:
  """Make accuracy and success rate under each mask, from images.

  Args:
    net: the network, on the device.
    task: `pruning_curve.PruningTask`: its images, labels and batch size; the
      trigger is a white square of 4x4 at the bottom right.
    masks: float32 [P,C] on the last convolution's channels.
  """
  images, labels = put_images(task.images), put(task.labels)
  masks = put(masks)[:, :, None, None]

  def share(mask, triggered, expected, counts):
    hits = 0
    for rows in torch.arange(len(images)).split(task.batch):
      x = images[rows].float() / 255.0
      if triggered:
        x[:, :, -4:, -4:] = 1.0
      with precision(task.case.bf16):
        predicted = net.head(net.features(x) * mask).argmax(1)
      hits += ((predicted == expected[rows]) & counts[rows]).sum()
    return (hits / counts.sum()).item()

  @torch.inference_mode()
  def run():
    net.eval()
    target = torch.zeros_like(labels)
    return [
      (
        share(mask, False, labels, labels == labels),
        share(mask, True, target, labels != target),
      )
      for mask in masks
    ]

  return synchronized(run)


def heads(
  net: Any, features: Any, labels: Any, masks: Any
) -> Callable[[], list[float]]:
  """Make the accuracy under each mask, from features computed before.

  Args:
    net: the network, on the device.
    features: float32 [N,h,w,C].
    labels: int [N].
    masks: float32 [P,C].
  """
  features, labels = put_images(features), put(labels)
  masks = put(masks)[:, :, None, None]

  @torch.inference_mode()
  def run():
    return [
      (net.head(features * mask).argmax(1) == labels).float().mean().item()
      for mask in masks
    ]

  return synchronized(run)
