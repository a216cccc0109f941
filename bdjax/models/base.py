"""A network as a bundle of pure functions on nested dicts of arrays.

The only file that splits and merges Flax NNX modules.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Variables = dict[str, Any]  # nested dicts of arrays
# (layer, activations [B,H,W,C]) -> what goes on in their place.
Tap = Callable[[str, jax.Array], jax.Array]


class Weights(NamedTuple):
  """What a trained network is made of, apart from its definition."""

  params: Variables
  batch_stats: Variables


def no_tap(layer: str, x: jax.Array) -> jax.Array:
  """Lets a layer's activations go on as they are."""
  del layer
  return x


def no_preparation(
  params: Variables, batch_stats: Variables, images: jax.Array
) -> Variables:
  """Gives the batch statistics as they are."""
  del params, images
  return batch_stats


class HeadInTwo(NamedTuple):
  """A head as `leave(enter(features))`, where channels only add up at first.

  `enter` is a sum over channels: it may pool each by itself, with what gives
  zeros for zeros, and then is linear. What a channel adds does not depend on
  the others, and comes from its own weights alone.

  Attributes:
    enter: `(params, batch_stats, features) -> sums`, a tree of [B,...].
    leave: `(params, batch_stats, sums) -> logits` float32 [B,K].
    of_channel: `(params, channel int32 scalar, C) -> params`, with which
      `enter` of that channel alone, [B,h,w,1], is what it adds to the sums.
      Biases are 0 there; they are what `enter` of zeros gives.
  """

  enter: Callable[..., Any]
  leave: Callable[..., jax.Array]
  of_channel: Callable[..., Variables]


class Model(NamedTuple):
  """Pure functions of an image classifier, in the manner of optax.

  Images are float32 [B,H,W,C] in [0,1]; normalisation is the network's first
  layer. `params` and `batch_stats` are nested dicts of float32 arrays.

  Attributes:
    init: `(key) -> (params, batch_stats)`.
    apply: `(params, batch_stats, images, train, tap=no_tap) -> (logits,
      batch_stats)`, logits float32 [B,K]. With `train=True` batch
      normalisation uses the statistics of the batch and the returned
      `batch_stats` are updated. While it is traced, `tap` is called with the
      name and the output of every convolutional layer, after nonlinearity
      and pooling, and may look at that or replace it.
    features: `(params, batch_stats, images) -> features`, what pruning and
      activation defences look at: the last convolution's output, channels
      last, as it enters `head`.
    head: `(params, batch_stats, features) -> logits`; `head` of `features` is
      `apply` with `train=False`.
    prepare: `(params, batch_stats, images) -> batch_stats`, before the first
      step, with images of the training set: for a network with a layer that is
      computed from them. The others leave `batch_stats` as they are.
    head_in_two: the same in two parts; None where it has no such parts.
  """

  init: Callable[..., tuple[Variables, Variables]]
  apply: Callable[..., tuple[jax.Array, Variables]]
  features: Callable[..., jax.Array]
  head: Callable[..., jax.Array]
  prepare: Callable[..., Variables] = no_preparation
  head_in_two: HeadInTwo | None = None


class Generator(NamedTuple):
  """Pure functions of a trigger generator.

  Attributes:
    init: `(key) -> params`, nested dicts of float32 arrays.
    apply: `(params, noise, condition) -> patches`: noise float32 [B,D] in
      [0,1], condition float32 [B,T] (one-hot) or None; patches float32
      [B,s,s,C] in [0,1].
  """

  init: Callable[..., Variables]
  apply: Callable[..., jax.Array]


class Normalize(nnx.Module):
  """Per-channel normalisation, `(x - mean) / std`, constant under training.

  The moments are numbers of the definition, not variables: they are part of
  what the model is, so a checkpoint cannot disagree with them.
  """

  def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
    self.mean = tuple(mean)
    self.std = tuple(std)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Normalises float32 [...,C]."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean = jnp.asarray(self.mean, images.dtype).reshape(shape)
    std = jnp.asarray(self.std, images.dtype).reshape(shape)
    return (images - mean) / std


class Classifier(nnx.Module):
  """A network: `features(images, train, tap)`, and a head in two parts.

  The head is `leave(enter(features))`, see `HeadInTwo`. A network without
  such parts has a `head` of its own and no `entry`.

  Attributes:
    entry: the layers of `enter`, linear ones and convolutions, by name. Their
      inputs are the features, a linear layer's flattened channels last.
  """

  entry: tuple[str, ...] = ()

  def head(self, x: jax.Array) -> jax.Array:
    """Logits [B,K] of features."""
    return self.leave(self.enter(x))

  def prepare(self, images: jax.Array) -> None:
    """Sees images of the training set, f32 [N,H,W,C] in [0,1]."""


def from_module(make: Callable[[nnx.Rngs], Classifier]) -> Model:
  """Turns a network into a `Model`.

  Args:
    make: builds the module from its random streams.
  """

  def split(module):
    return nnx.split(module, nnx.Param, nnx.BatchStat)

  shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  graphdef, entry = split(shapes)[0], shapes.entry

  def merge(params, batch_stats):
    return nnx.merge(graphdef, params, batch_stats)

  def init(key):
    _, params, batch_stats = split(make(nnx.Rngs(key)))
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

  def apply(params, batch_stats, images, train, tap=no_tap):
    module = merge(params, batch_stats)
    x = module.features(images, train, tap)
    logits = module.head(x).astype(jnp.float32)
    return logits, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

  def features(params, batch_stats, images):
    return merge(params, batch_stats).features(images, False, no_tap)

  def head(params, batch_stats, x):
    return merge(params, batch_stats).head(x).astype(jnp.float32)

  def prepare(params, batch_stats, images):
    module = merge(params, batch_stats)
    module.prepare(images)
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

  def enter(params, batch_stats, x):
    return merge(params, batch_stats).enter(x)

  def leave(params, batch_stats, sums):
    return merge(params, batch_stats).leave(sums).astype(jnp.float32)

  def of_channel(params, channel, channels):
    own = {
      layer: _of_channel(params[layer], channel, channels) for layer in entry
    }
    return params | own

  halves = HeadInTwo(enter, leave, of_channel) if entry else None
  return Model(init, apply, features, head, prepare, halves)


def _of_channel(layer: Variables, channel: jax.Array, channels: int):
  """A layer's part that reads one channel of its input; no bias."""
  *window, rows, units = layer["kernel"].shape
  # Of a flattened input every `channels`-th row; of others the one row.
  kernel = layer["kernel"].reshape(*window, rows // channels, channels, units)
  own = {name: jnp.zeros_like(x) for name, x in layer.items()}
  return own | {"kernel": kernel[..., channel, :]}


def generator_from_module(make: Callable[[nnx.Rngs], nnx.Module]) -> Generator:
  """Turns a module called as `module(noise, condition)` into a `Generator`.

  Args:
    make: builds the module from its random streams.
  """
  graphdef = nnx.eval_shape(lambda: nnx.split(make(nnx.Rngs(0)), nnx.Param))[0]

  def init(key):
    _, params = nnx.split(make(nnx.Rngs(key)), nnx.Param)
    return nnx.to_pure_dict(params)

  def apply(params, noise, condition):
    return nnx.merge(graphdef, params)(noise, condition)

  return Generator(init, apply)


def layers(model: Model, image_shape: tuple[int, int, int]) -> dict[str, int]:
  """The convolutional layers, in order, with their numbers of channels.

  The last one's output is what `model.features` gives.

  Args:
    model: the model.
    image_shape: (H, W, C).
  """
  found = {}

  def tap(layer, x):
    found[layer] = x.shape[-1]
    return x

  def run(key):
    images = jnp.zeros((1, *image_shape))
    return model.apply(*model.init(key), images, False, tap)

  jax.eval_shape(run, jax.random.key(0))
  return found


def count_parameters(model: Model) -> int:
  """The number of trainable scalars, without allocating any."""
  params, _ = jax.eval_shape(model.init, jax.random.key(0))
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
