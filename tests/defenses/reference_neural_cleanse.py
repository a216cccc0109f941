"""Neural Cleanse as its authors run it: one class at a time, in plain Python.

Written from Wang et al. (2019) and the order of events in the authors'
`visualizer.py`, with their variables, and apart from `bdjax.defenses`: only
the classifier and the images of each step are given. The gradient is one
compiled function; everything around it is numpy and Python.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Step(NamedTuple):
  asr: float
  norm: float
  best_norm: float
  cost: float
  stopped: bool


class Recorder:
  """Cost, early stop and best mask, as in `Visualizer.visualize`."""

  def __init__(self, settings):
    self.settings = settings
    self.cost = 0.0
    self.best_norm = math.inf
    self.cost_set_counter = 0
    self.cost_up_counter = 0
    self.cost_down_counter = 0
    self.cost_up_flag = False
    self.cost_down_flag = False
    self.early_stop_counter = 0
    self.early_stop_norm = math.inf

  def step(self, asr, norm):
    """Takes a step's averages; returns (whether it is the best, to stop)."""
    s = self.settings
    success = asr >= s.asr_threshold
    best = success and norm < self.best_norm
    if best:
      self.best_norm = norm

    if self.best_norm < math.inf:
      if self.best_norm >= s.early_stop_threshold * self.early_stop_norm:
        self.early_stop_counter += 1
      else:
        self.early_stop_counter = 0
    self.early_stop_norm = min(self.best_norm, self.early_stop_norm)
    if self.cost_down_flag and self.cost_up_flag:
      if self.early_stop_counter >= s.early_stop_patience:
        return best, True

    if self.cost == 0 and success:
      self.cost_set_counter += 1
      if self.cost_set_counter >= s.patience:
        self.cost = s.init_cost
        self.cost_up_counter = 0
        self.cost_down_counter = 0
        self.cost_up_flag = False
        self.cost_down_flag = False
    else:
      self.cost_set_counter = 0

    if success:
      self.cost_up_counter += 1
      self.cost_down_counter = 0
    else:
      self.cost_up_counter = 0
      self.cost_down_counter += 1
    if self.cost_up_counter >= s.patience:
      self.cost_up_counter = 0
      self.cost *= s.cost_multiplier
      self.cost_up_flag = True
    elif self.cost_down_counter >= s.patience:
      self.cost_down_counter = 0
      self.cost /= s.cost_multiplier**1.5
      self.cost_down_flag = True
    return best, False


class Adam:
  """Kingma and Ba (2015), algorithm 1."""

  def __init__(self, variables, learning_rate):
    self.rate = learning_rate
    self.count = 0
    self.first = [np.zeros_like(v) for v in variables]
    self.second = [np.zeros_like(v) for v in variables]

  def update(self, variables, grads):
    self.count += 1
    out = []
    for i, (variable, grad) in enumerate(zip(variables, grads, strict=True)):
      self.first[i] = 0.5 * self.first[i] + 0.5 * grad
      self.second[i] = 0.9 * self.second[i] + 0.1 * grad**2
      first = self.first[i] / (1 - 0.5**self.count)
      second = self.second[i] / (1 - 0.9**self.count)
      step = self.rate * first / (np.sqrt(second) + 1e-7)
      out.append((variable - step).astype(np.float32))
    return out


def make_gradient(model, weights):
  """`(mask and pattern variables, batch, target, cost) -> grads, aux`."""

  def loss(variables, batch, target, cost):
    mask, pattern = [jnp.tanh(v) / 2 + 0.5 for v in variables]
    mask = jnp.broadcast_to(mask[None], (*batch.shape[:3], 1))
    images = batch + mask * (pattern[None] - batch)
    logits, _ = model.apply(weights[0], weights[1], images)
    logits -= jax.nn.logsumexp(logits, axis=1, keepdims=True)
    norm = jnp.abs(mask[0]).sum()
    loss = -jnp.take(logits, target, axis=1).mean() + cost * norm
    return loss, (logits.argmax(1), norm)

  return jax.jit(jax.grad(loss, has_aux=True))


def reverse(gradient, images, target, settings, variables, rows_of):
  """Reverses one class.

  Args:
    gradient: from `make_gradient`.
    images: uint8 [N,H,W,C].
    target: the class.
    settings: of the search.
    variables: of mask and pattern at the start.
    rows_of: step -> int [updates,batch_size], the images it takes.

  Returns:
    (one `Step` a step, best mask, best pattern); None, None if the success
    rate was never reached.
  """
  variables = [np.asarray(v) for v in variables]
  adam = Adam(variables, settings.learning_rate)
  recorder = Recorder(settings)
  log, mask, pattern = [], None, None
  for number in range(settings.steps):
    hits, norms = [], []
    for rows in rows_of(number):
      batch = (images[rows] / 255).astype(np.float32)
      grads, (predicted, norm) = gradient(
        variables, batch, np.int32(target), np.float32(recorder.cost)
      )
      variables = adam.update(variables, [np.asarray(g) for g in grads])
      hits.extend(np.asarray(predicted) == target)
      norms.append(float(norm))
    asr, norm = np.mean(hits), np.mean(norms)
    best, stop = recorder.step(asr, norm)
    if best:
      mask, pattern = [np.tanh(v) / 2 + 0.5 for v in variables]
    log.append(Step(asr, norm, recorder.best_norm, recorder.cost, stop))
    if stop:
      break
  return log, mask, pattern
