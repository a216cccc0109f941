"""The device and the precision that torch computes with."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_num_threads(os.cpu_count() or 1)
if DEVICE.type == "cuda":
  # JAX multiplies float32 in TF32 on GPUs that have it; so does torch then.
  torch.set_float32_matmul_precision("high")
  torch.backends.cudnn.benchmark = True


def precision(bf16: bool) -> contextlib.AbstractContextManager:
  """Return a context that casts to bfloat16, or does nothing."""
  if not bf16:
    return contextlib.nullcontext()
  return torch.autocast(DEVICE.type, torch.bfloat16)


def put(array: Any) -> torch.Tensor:
  """Copy an array of JAX or numpy to the device."""
  return torch.from_numpy(np.array(array)).to(DEVICE)


def put_images(images: Any) -> torch.Tensor:
  """Copy images [N,H,W,C] to the device as [N,C,H,W]."""
  return put(images).permute(0, 3, 1, 2).contiguous()


def synchronized(function: Callable[[], Any]) -> Callable[[], Any]:
  """Wrap a function to return when its work is done, also on a GPU."""

  def run():
    result = function()
    if DEVICE.type == "cuda":
      torch.cuda.synchronize()
    return result

  return run
