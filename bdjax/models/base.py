"""Networks as bundles of pure functions on nested dicts of arrays.

The only file that splits and merges Flax NNX modules.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bdjax.models.split_head import SplitHead, make_split_head

Variables = dict[str, Any]  # nested dicts of arrays
Path = tuple[str | int, ...]  # keys that lead to a leaf or a dict of them
# (layer, activations [B,H,W,C]) -> the activations that go on.
Tap = Callable[[str, jax.Array], jax.Array]


class Weights(NamedTuple):
  """The variables of a trained network."""

  params: Variables
  batch_stats: Variables


def no_tap(layer: str, x: jax.Array) -> jax.Array:
  """Return a layer's activations unchanged."""
  del layer
  return x


def no_preparation(
  params: Variables, batch_stats: Variables, images: jax.Array
) -> Variables:
  """Return the batch statistics unchanged."""
  del params, images
  return batch_stats


class Norm(NamedTuple):
  """A batch normalisation layer.

  Attributes:
    path: its dict in `params`, of `bias` and, where the layer has one, `scale`.
    conv: the path in `params` of the convolution whose output it alone
      normalises (at most max-pooled in between); None where its input is a
      sum of branches.
    stats: its dict in `batch_stats`, of `mean` and `var`; the same path, but
      in a masked model.
  """

  path: Path
  conv: Path | None
  stats: Path

  @classmethod
  def at(cls, path: Path, conv: Path | None) -> "Norm":
    """Describe a layer whose path is the same in both trees."""
    return cls(path, conv, path)


class Structure(NamedTuple):
  """The layers of a network that defences and attacks ask for.

  Attributes:
    stages: names of the tapped layers that end each stage, in order; the
      output of the last one is `Model.features`.
    norms: the batch normalisation layers, in forward order.
    biases: tapped layer -> path in `params` of the bias [C] that is added
      right before the layer's ReLU: a convolution's own, or that of the
      normalisation after it; for a residual block that of its second
      normalisation, which is added to the sum with the shortcut. Empty where
      the nonlinearity is not ReLU: no bias silences a channel there.
  """

  stages: tuple[str, ...] = ()
  norms: tuple[Norm, ...] = ()
  biases: dict[str, Path] = {}


class Model(NamedTuple):
  """Pure functions of an image classifier, in the manner of optax.

  Images are float32 [B,H,W,C] in [0,1]; normalisation is the network's first
  layer. `params` and `batch_stats` are nested dicts of float32 arrays.

  Attributes:
    init: `(key) -> (params, batch_stats)`.
    apply: `(params, batch_stats, images, *, train=False, tap=no_tap) ->
      (logits, batch_stats)`, logits float32 [B,K]. With `train=True` batch
      normalisation uses the statistics of the batch and the returned
      `batch_stats` are updated. While it is traced, `tap` is called with the
      name and the output of every convolutional layer, after nonlinearity
      and pooling, and returns that or a replacement.
    features: `(params, batch_stats, images) -> features`: the last
      convolution's output, channels last, as it enters `head`; pruning and
      activation defences use it.
    head: `(params, batch_stats, features) -> logits`; `head` of `features` is
      `apply` with `train=False`.
    prepare: `(params, batch_stats, images) -> batch_stats`, before the first
      step, with images of the training set: for a network with a layer that is
      computed from them. The others leave `batch_stats` unchanged.
    split_head: the head in two parts; None where it has no such parts.
    structure: stages, normalisation layers and biases.
  """

  init: Callable[..., tuple[Variables, Variables]]
  apply: Callable[..., tuple[jax.Array, Variables]]
  features: Callable[..., jax.Array]
  head: Callable[..., jax.Array]
  prepare: Callable[..., Variables] = no_preparation
  split_head: SplitHead | None = None
  structure: Structure = Structure()


class Generator(NamedTuple):
  """Pure functions of a trigger generator that keeps no statistics.

  Attributes:
    init: `(key) -> params`, nested dicts of float32 arrays.
    apply: `(params, noise, condition) -> patches`: noise float32 [B,D] in
      [0,1], condition float32 [B,T] (one-hot) or None; patches float32
      [B,s,s,C] in [0,1].
  """

  init: Callable[..., Variables]
  apply: Callable[..., jax.Array]


class ImageNetwork(NamedTuple):
  """Pure functions of a network from images to images.

  Attributes:
    init: `(key) -> (params, batch_stats)`, nested dicts of float32 arrays.
    apply: `(params, batch_stats, images, *, train=False) -> (outputs,
      batch_stats)`: images float32 [B,H,W,C], outputs float32 [B,H,W,D],
      unbounded. With `train=True` batch normalisation uses the statistics of
      the batch and the returned `batch_stats` are updated.
  """

  init: Callable[..., tuple[Variables, Variables]]
  apply: Callable[..., tuple[jax.Array, Variables]]


def _split(module: nnx.Module):
  return nnx.split(module, nnx.Param, nnx.BatchStat)


def _init(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array):
  _, params, batch_stats = _split(make(nnx.Rngs(key)))
  return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def _batch_stats(module: nnx.Module) -> Variables:
  return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def from_module(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
  """Turn a network into a `Model`.

  Args:
    make: builds the module, a `classifier.Classifier`, from its random
      streams.
  """
  module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  graphdef = _split(module)[0]
  structure, inputs = module.structure(), module.head_inputs

  def merge(params, batch_stats):
    return nnx.merge(graphdef, params, batch_stats)

  def apply(params, batch_stats, images, *, train=False, tap=no_tap):
    module = merge(params, batch_stats)
    x = module.features(images, train, tap)
    logits = module.head(x).astype(jnp.float32)
    return logits, _batch_stats(module)

  def features(params, batch_stats, images):
    return merge(params, batch_stats).features(images, False, no_tap)

  def head(params, batch_stats, x):
    return merge(params, batch_stats).head(x).astype(jnp.float32)

  def prepare(params, batch_stats, images):
    module = merge(params, batch_stats)
    module.prepare(images)
    return _batch_stats(module)

  return Model(
    lambda key: _init(make, key),
    apply,
    features,
    head,
    prepare,
    make_split_head(merge, inputs) if inputs else None,
    structure,
  )


def generator_from_module(make: Callable[[nnx.Rngs], nnx.Module]) -> Generator:
  """Turn a module called as `module(noise, condition)` into a `Generator`.

  Args:
    make: builds the module, without batch statistics, from its random streams.
  """
  graphdef = nnx.eval_shape(lambda: nnx.split(make(nnx.Rngs(0)), nnx.Param))[0]

  def init(key):
    _, params = nnx.split(make(nnx.Rngs(key)), nnx.Param)
    return nnx.to_pure_dict(params)

  def apply(params, noise, condition):
    return nnx.merge(graphdef, params)(noise, condition)

  return Generator(init, apply)


def image_network_from_module(
  make: Callable[[nnx.Rngs], nnx.Module],
) -> ImageNetwork:
  """Turn a module called as `module(images, train)` into an `ImageNetwork`.

  Args:
    make: builds the module from its random streams.
  """
  graphdef = nnx.eval_shape(lambda: _split(make(nnx.Rngs(0))))[0]

  def apply(params, batch_stats, images, *, train=False):
    module = nnx.merge(graphdef, params, batch_stats)
    return module(images, train).astype(jnp.float32), _batch_stats(module)

  return ImageNetwork(lambda key: _init(make, key), apply)
