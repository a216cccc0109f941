"""A training step in PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.pytorch.device import precision, put, put_images, synchronized


def optimizer(net: Any, rate: float, momentum: float, decay: float):
  """Make SGD with Nesterov momentum and weight decay on kernels alone."""
  kernels = [p for p in net.parameters() if p.ndim > 1]
  vectors = [p for p in net.parameters() if p.ndim <= 1]
  groups = [
    {"params": kernels, "weight_decay": decay},
    {"params": vectors, "weight_decay": 0.0},
  ]
  return torch.optim.SGD(groups, rate, momentum=momentum, nesterov=True)


def make_steps(
  net: Any,
  images: Any,
  labels: Any,
  rows: Any,
  *,
  rate: float,
  momentum: float,
  decay: float,
  channels_last: bool = False,
  compiled: bool = False,
  bf16: bool = False,
) -> Callable[[], float]:
  """Make a loop of steps over images that lie on the device.

  Args:
    net: the network, on the device.
    images: uint8 [N,H,W,C].
    labels: int [N].
    rows: int [steps,batch], the images of each step.
    rate: learning rate.
    momentum: Nesterov's.
    decay: weight decay.
    channels_last: the layout of the images; the network has it already.
    compiled: whether through `torch.compile`.
    bf16: whether to cast to bfloat16.

  Returns:
    A function that runs all steps and returns the last loss.
  """
  images, labels = put_images(images), put(labels).long()
  rows = put(rows).long()
  layout = torch.channels_last if channels_last else torch.contiguous_format
  forward = torch.compile(net) if compiled else net
  sgd = optimizer(net, rate, momentum, decay)

  def run():
    net.train()
    for batch in rows:
      x = (images[batch].float() / 255.0).contiguous(memory_format=layout)
      with precision(bf16):
        loss = F.cross_entropy(forward(x), labels[batch])
      sgd.zero_grad(set_to_none=True)
      loss.backward()
      sgd.step()
    return loss.item()

  return synchronized(run)
