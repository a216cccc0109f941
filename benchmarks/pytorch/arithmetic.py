"""A matrix product and a copy."""

import torch

from benchmarks.pytorch.device import DEVICE, synchronized


def product(side: int, bf16: bool):
  """Make a product of two square matrices."""
  a = torch.ones(side, side, device=DEVICE)
  a = a.to(torch.bfloat16) if bf16 else a
  return synchronized(lambda: a @ a)


def copy(shape: tuple[int, ...]):
  """Make the sum of an array and 1."""
  x = torch.ones(shape, device=DEVICE)
  return synchronized(lambda: x + 1.0)
