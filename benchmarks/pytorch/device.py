"""Where torch computes and in what precision; nowhere else is it said."""

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
  """Autocast to bfloat16, or nothing."""
  if not bf16:
    return contextlib.nullcontext()
  return torch.autocast(DEVICE.type, torch.bfloat16)


def put(array: Any) -> torch.Tensor:
  """An array of JAX or numpy on the device."""
  return torch.from_numpy(np.array(array)).to(DEVICE)


def put_images(images: Any) -> torch.Tensor:
  """Images [N,H,W,C] on the device as [N,C,H,W]."""
  return put(images).permute(0, 3, 1, 2).contiguous()


def waited(function: Callable[[], Any]) -> Callable[[], Any]:
  """The function, done when it returns, also on a GPU."""

  def run():
    out = function()
    if DEVICE.type == "cuda":
      torch.cuda.synchronize()
    return out

  return run
