"""Neural Cleanse in PyTorch, one class after the other (Wang et al. 2019)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.pytorch.device import precision, put_images, synchronized


class _Cost:
  """The weight of the mask's norm, moved by successes and failures in a row."""

  def __init__(self, settings):
    self.settings = settings
    self.value, self.successes, self.failures = 0.0, 0, 0

  def step(self, asr):
    s = self.settings
    success = asr >= s.asr_threshold
    self.successes = self.successes + 1 if success else 0
    self.failures = 0 if success else self.failures + 1
    if self.successes >= s.patience:
      self.successes = 0
      self.value = self.value * s.cost_multiplier or s.init_cost
    elif self.failures >= s.patience:
      self.failures = 0
      self.value /= s.cost_multiplier**1.5


def searches(
  net: Any,
  images: Any,
  variables: Any,
  settings: Any,
  *,
  channels_last: bool = False,
  bf16: bool = False,
) -> Callable[[], list[torch.Tensor]]:
  """Make searches of the smallest trigger of every class.

  Args:
    net: the network, on the device; used as at test time.
    images: uint8 [N,H,W,C], N = updates x batch_size.
    variables: (mask [K,H,W,1], pattern [K,H,W,C]), before tanh.
    settings: `bdjax.defenses.neural_cleanse.SearchSettings`; none stops early.
    channels_last: the layout of the images; the network has it already.
    bf16: whether to cast to bfloat16.

  Returns:
    A function that returns the masks [1,H,W] in [0,1], class by class.
  """
  layout = torch.channels_last if channels_last else torch.contiguous_format
  images = put_images(images)
  masks, patterns = [put_images(v) for v in variables]
  net.requires_grad_(False)

  def search(target):
    mask = masks[target].clone().requires_grad_()
    pattern = patterns[target].clone().requires_grad_()
    adam = torch.optim.Adam(
      [mask, pattern], settings.learning_rate, betas=(0.5, 0.9), eps=1e-7
    )
    cost = _Cost(settings)
    targets = torch.full((settings.batch_size,), target, device=images.device)
    for _ in range(settings.steps):
      hits = 0
      order = torch.randperm(len(images), device=images.device)
      for rows in order.split(settings.batch_size):
        x = (images[rows].float() / 255.0).contiguous(memory_format=layout)
        m, p = (mask.tanh() + 1) / 2, (pattern.tanh() + 1) / 2
        with precision(bf16):
          logits = net((1 - m) * x + m * p)
        loss = F.cross_entropy(logits.float(), targets) + cost.value * m.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        hits += (logits.argmax(1) == target).sum()
      cost.step(hits.item() / len(images))
    return (mask.detach().tanh() + 1) / 2

  def run():
    net.eval()
    return [search(target) for target in range(len(masks))]

  return synchronized(run)
