"""The pruning curve: all points at once, against one evaluation a point.

python -m benchmarks.pruning_curve
python -m benchmarks.pruning_curve --images=10000 --batch=1024 --bf16  # GPU

A point is the clean accuracy and the attack success rate with so many channels
of the last convolution pruned; ResNet-18 has 513 points. First from images,
the passes through the network included: claimed is 100 times the speed of one
evaluation a point, aimed at is 1.05 times the cost of a single evaluation.
Then from features that are cached already (for ResNet-18 pooled), where what
is left is the head.

Of the slow peers a few points are timed, and scaled up.

Operations, from images: the forward passes of both sets of images, clean and
triggered. From features: a head for every point, of which ours may do less.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import compiler, evaluation, models, sharding
from bdjax.attacks.badnets import badnets
from bdjax.defenses import pruning
from benchmarks import peers, roofline, script
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison


class Subject:
  """A network, the masks of its curve, clean and triggered images."""

  def __init__(self, case: script.Case, count: int, batch: int):
    self.case, self.batch = case, min(batch, count)
    self.model, self.weights = script.network(case)
    self.layer = pruning.check_layer(self.model, case.shape)
    channels = models.layers(self.model, case.shape)[self.layer]
    self.order = jnp.arange(channels)
    self.masks = pruning.prefix_masks(self.order)
    self.images, self.labels = script.images(count, case), script.labels(count)
    height, width, depth = case.shape
    corner = np.array([[[height - 4, width - 4, height, width]]], np.int32)
    self.attack = badnets((0,), corner, 4, depth)
    self.mesh = sharding.make_mesh()

  def evaluate(self, function, args):
    """Accuracies and success rates of a function of a batch, float [...]."""
    clean = evaluation.over_images(function, self.batch, self.mesh)
    triggered = evaluation.over_triggered(
      function, self.attack, self.batch, self.mesh
    )
    labels = np.asarray(self.labels)

    def run(args=args):
      found = clean(args, script.KEY, self.images)
      stamped, targets, counts = triggered(
        args, {}, script.KEY, self.images, self.labels
      )
      hits = (np.asarray(found).T == labels).mean(-1)
      counts = np.asarray(counts)
      reached = np.asarray(stamped).T == np.asarray(targets)
      return hits, reached[..., counts].mean(-1)

    return run


def ours(subject: Subject):
  """The whole curve in one pass over each set of images."""
  function = pruning.predict_prefixes(subject.model, subject.layer)
  return subject.evaluate(function, (subject.weights, subject.order))


def one_evaluation(subject: Subject):
  """The whole network's accuracy and success rate, nothing pruned."""

  def predict(weights, key, images):
    del key
    return subject.model.apply(*weights, images, False)[0].argmax(-1)

  return subject.evaluate(predict, subject.weights)


def point_by_point(subject: Subject, points: int):
  """One evaluation a point, with the masks as data: compiled once."""
  masked = pruning.masked(subject.model)

  def predict(weights, key, images):
    del key
    return masked.apply(*weights, images, False)[0].argmax(-1)

  run = subject.evaluate(predict, None)
  pruned = [
    pruning.prune(subject.weights, {subject.layer: mask})
    for mask in subject.masks[:points]
  ]
  return lambda: [run(weights) for weights in pruned]


def from_images(
  case: script.Case, count: int, batch: int, points: int
) -> Comparison:
  """The curve with all that it takes, beside evaluations."""
  subject = Subject(case, count, batch)
  total = len(subject.masks)
  points = min(points, total)
  slow = f"one evaluation a point, compiled once ({points} points)"
  functions = {
    f"ours, {total} points": ours(subject),
    "one evaluation, nothing pruned": one_evaluation(subject),
    slow: point_by_point(subject, points),
  }
  parts = {slow: points / total}
  peer = peers.load("pruning")
  if peer:
    net = peers.load("networks").make(case, script.CLASSES, subject.weights)
    name = f"torch, one evaluation a point ({points} points)"
    functions[name] = peer.point_by_point(net, subject, subject.masks[:points])
    parts[name] = points / total
  forward = forward_operations(case, script.CLASSES)
  return Comparison(
    f"pruning curve from images, {case}, {total} points, {count} images",
    functions,
    item="curve",
    parts=parts,
    operations=2 * forward * count,
    traffic=roofline.size(subject.images, subject.weights),
    wanted="100 times one evaluation a point; one evaluation takes at least "
    "0.95 times as long",
  )


def head_only(model: models.Model, layer: str) -> models.Model:
  """A network whose images are features: its layer gives them as they are."""

  def apply(params, batch_stats, features, train, tap):
    del train
    return model.head(params, batch_stats, tap(layer, features)), batch_stats

  return model._replace(
    apply=apply, features=lambda params, batch_stats, features: features
  )


def cached(subject: Subject, count: int) -> jax.Array:
  """Random features, at least 0, float32 [N,h,w,C].

  Pooled where that is all that the head does before its linear layer.
  """
  like = jax.eval_shape(
    subject.model.features,
    *subject.weights,
    jax.ShapeDtypeStruct((1, *subject.case.shape), jnp.float32),
  )
  height, width, channels = like.shape[1:]
  if subject.case.model == "resnet18":
    height = width = 1
  shape = (count, height, width, channels)
  return jnp.abs(jax.random.normal(script.KEY, shape))


def ours_cached(subject: Subject, features, labels, batch):
  """The accuracies of all points from features."""
  model = head_only(subject.model, subject.layer)
  predict = pruning.predict_prefixes(model, subject.layer)

  def accuracies(weights, order, features, labels):
    def hits(args):
      found = predict((weights, order), script.KEY, args[0])
      return (found == args[1][:, None]).sum(0)

    count = len(features)
    cut = [x.reshape(-1, batch, *x.shape[1:]) for x in (features, labels)]
    return jax.lax.map(hits, cut).sum(0) / count

  run = compiler.jit(accuracies)
  return lambda: run(subject.weights, subject.order, features, labels)


def from_features(case: script.Case, count: int) -> Comparison:
  """The curve from cached features, beside torch's loop over the points."""
  subject = Subject(case, 1, 1)
  features, labels = cached(subject, count), script.labels(count)
  batch = next(b for b in range(min(count, 500), 0, -1) if count % b == 0)
  functions = {
    "ours, all points in one call": ours_cached(
      subject, features, labels, batch
    )
  }
  peer = peers.load("pruning")
  if peer:
    net = peers.load("networks").make(case, script.CLASSES, subject.weights)
    functions["torch, head by head"] = peer.heads(
      net, features, labels, subject.masks
    )
  model, weights = subject.model, subject.weights
  head = jax.jit(model.head).lower(*weights, features[:1]).cost_analysis()
  return Comparison(
    f"pruning curve from features, {case}, {len(subject.masks)} points, "
    f"{count} images",
    functions,
    item="curve",
    operations=head["flops"] * count * len(subject.masks),
    traffic=roofline.size(features),
  )


def comparisons(
  setting: script.Setting, images: int, features: int, batch: int, points: int
):
  """For each network, from images and from features."""
  for case in script.cases(setting):
    default = 2048 if case.model == "cnn" else 128
    yield from_images(case, images or default, batch, points)
    yield from_features(case, features)


if __name__ == "__main__":
  script.main(
    comparisons,
    images=(0, "0: 2048 for cnn, 128 for others."),
    features=(10000, "Images whose features are cached."),
    batch=(128, "Images at a time."),
    points=(1, "Of a slow peer that are timed."),
  )
