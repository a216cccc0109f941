"""The pruning curve in PyTorch, one point after the other."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.pytorch.device import precision, put, put_images, waited


def point_by_point(
  net: Any, subject: Any, masks: Any
) -> Callable[[], list[tuple[float, float]]]:
  """Accuracy and success rate under each mask, from images.

  Args:
    net: the network, on the device.
    subject: `pruning_curve.Subject`: its images, labels and batch size; the
      trigger is a white square of 4x4 at the bottom right.
    masks: float32 [P,C] on the last convolution's channels.
  """
  images, labels = put_images(subject.images), put(subject.labels)
  masks = put(masks)[:, :, None, None]

  def share(mask, triggered, wanted, counts):
    hits = 0
    for rows in torch.arange(len(images)).split(subject.batch):
      x = images[rows].float() / 255.0
      if triggered:
        x[:, :, -4:, -4:] = 1.0
      with precision(subject.case.bf16):
        found = net.head(net.features(x) * mask).argmax(1)
      hits += ((found == wanted[rows]) & counts[rows]).sum()
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

  return waited(run)


def heads(
  net: Any, features: Any, labels: Any, masks: Any
) -> Callable[[], list[float]]:
  """The accuracy under each mask, from features that are there already.

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

  return waited(run)
