"""A matrix product and a copy."""

import torch

from benchmarks.pytorch.device import DEVICE, waited


def product(side: int, bf16: bool):
  """A product of two square matrices."""
  a = torch.ones(side, side, device=DEVICE)
  a = a.to(torch.bfloat16) if bf16 else a
  return waited(lambda: a @ a)


def copy(shape: tuple[int, ...]):
  """The sum of an array and 1."""
  x = torch.ones(shape, device=DEVICE)
  return waited(lambda: x + 1.0)
