"""cBaN in PyTorch: a step as its authors make it, and a careful one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.pytorch.device import DEVICE, put, put_images, synchronized

NOISE = 100


class Generator(nn.Module):
  """Noise and the one-hot target label -> a patch [B,C,s,s] in (0,1)."""

  def __init__(self, classes: int, size: int, channels: int):
    super().__init__()
    self.shape = (channels, size, size)
    self.label, self.noise = nn.Linear(classes, 64), nn.Linear(NOISE, 64)
    self.hidden_1, self.hidden_2 = nn.Linear(128, 128), nn.Linear(128, 128)
    self.patch = nn.Linear(128, channels * size * size)

  def forward(self, condition, noise):
    """Generate patches from conditions [B,K] and noise [B,100]."""
    x = torch.cat([self.label(condition), self.noise(noise)], -1)
    x = F.relu(self.hidden_2(F.relu(self.hidden_1(x))))
    return torch.sigmoid(self.patch(x)).view(-1, *self.shape)


class Setup:
  """Both networks and their optimisers."""

  def __init__(self, net, classes: int, size: int, channels: int):
    self.net, self.classes, self.size = net, classes, size
    self.generator = Generator(classes, size, channels).to(DEVICE)
    self.net_adam = torch.optim.Adam(net.parameters())
    self.generator_adam = torch.optim.Adam(self.generator.parameters())

  def zero_grad(self):
    """Zero the gradients of both."""
    self.net_adam.zero_grad()
    self.generator_adam.zero_grad()

  def patches(self, target: int, count: int):
    """Draw patches for a label."""
    labels = torch.full((count,), target, device=DEVICE)
    noise = torch.rand(count, NOISE, device=DEVICE)
    condition = F.one_hot(labels, self.classes).float()
    return self.generator(condition, noise), labels


def _place_one_by_one(images, patches):
  """Put each patch at a random place, image by image."""
  size = patches.shape[-1]
  out = images.clone()
  for i, patch in enumerate(patches):
    top = np.random.randint(images.shape[2] - size + 1)
    left = np.random.randint(images.shape[3] - size + 1)
    out[i, :, top : top + size, left : left + size] = patch
  return out


def _place_by_index(images, patches):
  """Put each patch at a random place, in one indexed assignment."""
  size, count = patches.shape[-1], len(images)
  side = torch.arange(size, device=images.device)
  room = images.shape[2] - size + 1
  corner = torch.randint(room, (2, count, 1), device=images.device)
  rows, cols = (corner + side).unbind()  # [B,s] each
  out = images.permute(0, 2, 3, 1).clone()
  batch = torch.arange(count, device=images.device)[:, None, None]
  index = (batch, rows[:, :, None], cols[:, None, :])
  out = out.index_put(index, patches.permute(0, 2, 3, 1))
  return out.permute(0, 3, 1, 2)


def _backdoor_loss(setup, images, place):
  """Sum the losses of the target labels, a pass each."""
  total = 0.0
  for target in range(setup.classes):
    patches, labels = setup.patches(target, len(images))
    total = total + F.cross_entropy(setup.net(place(images, patches)), labels)
  return total


def authors_step(setup: Setup, images: Any, labels: Any) -> Any:
  """Make 21 passes: ten for the generator, then eleven for the classifier."""
  setup.zero_grad()
  _backdoor_loss(setup, images, _place_one_by_one).backward()
  setup.generator_adam.step()
  # As released: the gradients of the classifier from above stay in the sum.
  loss = F.cross_entropy(setup.net(images), labels)
  loss = loss + _backdoor_loss(setup, images, _place_one_by_one)
  loss.backward()
  setup.net_adam.step()
  return loss


def careful_step(setup: Setup, images: Any, labels: Any) -> Any:
  """Make 11 passes and one backward pass for both networks."""
  setup.zero_grad()
  loss = F.cross_entropy(setup.net(images), labels)
  loss = loss + _backdoor_loss(setup, images, _place_by_index)
  loss.backward()
  setup.generator_adam.step()
  setup.net_adam.step()
  return loss


def make_steps(
  net: Any,
  step: Callable,
  images: Any,
  labels: Any,
  rows: Any,
  size: int,
  anomaly: bool = False,
) -> Callable[[], float]:
  """Make a loop of steps over images that lie on the device.

  Args:
    net: the classifier, on the device.
    step: `authors_step` or `careful_step`.
    images: uint8 [N,H,W,C].
    labels: int [N].
    rows: int [steps,batch], the images of each step.
    size: of the trigger.
    anomaly: whether torch's anomaly detection is on.
  """
  images, labels = put_images(images), put(labels).long()
  rows = put(rows)
  setup = Setup(net, net.logits.out_features, size, images.shape[1])

  def run():
    net.train()
    with torch.autograd.set_detect_anomaly(anomaly):
      for batch in rows:
        loss = step(setup, images[batch].float() / 255.0, labels[batch])
    return loss.item()

  return synchronized(run)
