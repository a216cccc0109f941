"""The networks of `bdjax.models`, with the same names of layers, in torch."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.pytorch.device import DEVICE


class CNN(nn.Module):
  """`bdjax.models.cnn`: two pooled convolutions and a hidden layer."""

  def __init__(self, shape: tuple[int, int, int], classes: int, width: int):
    super().__init__()
    height, cols, channels = shape
    self.conv_1 = nn.Conv2d(channels, width // 4, 3, padding=1)
    self.conv_2 = nn.Conv2d(width // 4, width // 2, 3, padding=1)
    flat = (height // 4) * (cols // 4) * (width // 2)
    self.hidden = nn.Linear(flat, 2 * width)
    self.logits = nn.Linear(2 * width, classes)

  def features(self, x):
    """Compute the pooled second convolution of images [B,C,H,W] in [0,1]."""
    x = F.max_pool2d(F.relu(self.conv_1(x)), 2)
    return F.max_pool2d(F.relu(self.conv_2(x)), 2)

  def head(self, x):
    """Compute logits [B,K] of features."""
    return self.logits(F.relu(self.hidden(x.flatten(1))))

  def forward(self, x):
    """Compute logits [B,K] of images."""
    return self.head(self.features(x))


def _conv(fan_in, fan_out, window, stride):
  padding = (window - 1) // 2
  return nn.Conv2d(fan_in, fan_out, window, stride, padding, bias=False)


class Block(nn.Module):
  """The basic residual block."""

  def __init__(self, fan_in: int, fan_out: int, stride: int):
    super().__init__()
    self.conv_1 = _conv(fan_in, fan_out, 3, stride)
    self.norm_1 = nn.BatchNorm2d(fan_out)
    self.conv_2 = _conv(fan_out, fan_out, 3, 1)
    self.norm_2 = nn.BatchNorm2d(fan_out)
    self.projects = stride != 1 or fan_in != fan_out
    if self.projects:
      self.shortcut = _conv(fan_in, fan_out, 1, stride)
      self.shortcut_norm = nn.BatchNorm2d(fan_out)

  def forward(self, x):
    """Map [B,C,H,W] to [B,C',H/stride,W/stride]."""
    y = F.relu(self.norm_1(self.conv_1(x)))
    y = self.norm_2(self.conv_2(y))
    if self.projects:
      x = self.shortcut_norm(self.shortcut(x))
    return F.relu(x + y)


class ResNet18(nn.Module):
  """`bdjax.models.resnet` with the stem for small images."""

  def __init__(self, shape: tuple[int, int, int], classes: int, width: int):
    super().__init__()
    self.stem = _conv(shape[2], width, 3, 1)
    self.stem_norm = nn.BatchNorm2d(width)
    blocks, fan_in = [], width
    for stage in range(4):
      for index in range(2):
        stride = 2 if stage and not index else 1
        blocks.append(Block(fan_in, width * 2**stage, stride))
        fan_in = width * 2**stage
    self.blocks = nn.Sequential(*blocks)
    self.logits = nn.Linear(fan_in, classes)

  def features(self, x):
    """Compute the last block's output of images [B,C,H,W] in [0,1]."""
    return self.blocks(F.relu(self.stem_norm(self.stem(x))))

  def head(self, x):
    """Compute logits [B,K] of features."""
    return self.logits(x.mean((2, 3)))

  def forward(self, x):
    """Compute logits [B,K] of images."""
    return self.head(self.features(x))


NETWORKS = {"cnn": CNN, "resnet18": ResNet18}


def make(case: Any, classes: int, weights: Any, channels_last: bool = False):
  """Make a network with our weights, on the device.

  Args:
    case: `script.Case`.
    classes: K.
    weights: `models.Weights` of our network of this case.
    channels_last: whether this is the layout of its memory.
  """
  net = NETWORKS[case.model](case.shape, classes, case.width)
  flat = {}
  for tree in weights:
    _flatten(tree, "", flat)
  net.load_state_dict(
    {name: _as_torch(net, name, flat) for name in net.state_dict()}
  )
  layout = torch.channels_last if channels_last else torch.contiguous_format
  return net.to(DEVICE, memory_format=layout)


# Flax's names for torch's; kernels are transposed below.
_NAMES = {"running_mean": "mean", "running_var": "var"}


def _flatten(tree, prefix, out):
  for name, value in tree.items():
    path = f"{prefix}.{name}" if prefix else str(name)
    if isinstance(value, dict):
      _flatten(value, path, out)
    else:
      out[path] = np.array(value)


def _as_torch(net, name, flat):
  """Return an entry of a torch state dict from our flattened weights."""
  path, leaf = name.rsplit(".", 1)
  if leaf == "num_batches_tracked":
    return torch.tensor(0)
  if leaf == "weight":
    leaf = "kernel" if f"{path}.kernel" in flat else "scale"
  value = flat[f"{path}.{_NAMES.get(leaf, leaf)}"]
  if value.ndim == 4:
    value = value.transpose(3, 2, 0, 1)
  elif path == "hidden" and value.ndim == 2:
    # We flatten [H,W,C], torch [C,H,W].
    channels = net.conv_2.out_channels
    area = value.shape[0] // channels
    value = value.reshape(area, channels, -1).transpose(2, 1, 0)
    value = value.reshape(len(value), -1)
  elif value.ndim == 2:
    value = value.T
  return torch.from_numpy(np.ascontiguousarray(value))
