"""STRIP in PyTorch, one overlay over all inputs at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.pytorch.device import precision, put_images, synchronized


def entropies(
  net: Any,
  images: Any,
  pool: Any,
  overlays: int,
  *,
  channels_last: bool = False,
  bf16: bool = False,
) -> Callable[[], np.ndarray]:
  """Make the mean entropy of each input over its overlays, in bits.

  Args:
    net: the network, on the device.
    images: uint8 [N,H,W,C].
    pool: uint8 [O,H,W,C]; the overlays are drawn from it, the same for all
      inputs.
    overlays: their number.
    channels_last: the layout of the images; the network has it already.
    bf16: whether to cast to bfloat16.

  Returns:
    A function that returns float32 [N].
  """
  layout = torch.channels_last if channels_last else torch.contiguous_format
  images, pool = put_images(images), put_images(pool)

  @torch.inference_mode()
  def run():
    net.eval()
    inputs = (images.float() / 255.0).contiguous(memory_format=layout)
    total = torch.zeros(len(inputs), device=inputs.device)
    for row in torch.randperm(len(pool))[:overlays].tolist():
      blended = 0.5 * inputs + 0.5 * (pool[row].float() / 255.0)
      with precision(bf16):
        logits = net(blended)
      p = logits.float().softmax(1)
      total -= torch.xlogy(p, p).sum(1) / math.log(2.0)
    return (total / overlays).cpu().numpy()

  return synchronized(run)
