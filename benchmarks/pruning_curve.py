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

from bdjax import batching, compiler, models, sharding
from bdjax.attacks.base import TriggerVariables
from bdjax.defenses import incremental_pruning
from bdjax.evaluation.predictions import over_triggered
from bdjax.models import masking
from benchmarks import peers, roofline, script
from benchmarks.augmentation import make_attack
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

FLAGS = {
  "images": script.Flag(0, "Images; 0: 2048 for cnn, 128 for others.", 4),
  "features": script.Flag(10000, "Images whose features are cached.", 4),
  "batch": script.Flag(128, "Images at a time.", 4),
  "points": script.Flag(1, "Points of a slow peer that are timed."),
}


class PruningTask:
  """A network, the masks of its curve, clean and triggered images."""

  def __init__(self, case: script.Case, count: int, batch: int):
    self.case, self.batch = case, min(batch, count)
    self.model, self.weights = script.network(case)
    self.layer = masking.check_layer(self.model, case.shape)
    channels = models.layers(self.model, case.shape)[self.layer]
    self.order = jnp.arange(channels)
    self.masks = incremental_pruning.prefix_masks(self.order)
    self.images, self.labels = script.images(count, case), script.labels(count)
    self.attack = make_attack("badnets", case, trigger_size=4)
    self.mesh = sharding.make_mesh()

  def evaluate(self, function, args):
    """Make the accuracies and success rates of a function of a batch.

    Args:
      function: `(args, key, images f32 [B,H,W,C]) -> labels int32 [B,...]`.
      args: the default ones.

    Returns:
      `(args) -> (accuracies, success rates)`, float [...] each.
    """
    clean = batching.over_images(function, self.batch, self.mesh)
    triggered = over_triggered(function, self.attack, self.batch, self.mesh)
    labels = np.asarray(self.labels)
    variables = TriggerVariables({}, {})

    def run(args=args):
      predicted = clean(args, script.KEY, self.images)
      backdoored, targets, counts = triggered(
        args, variables, script.KEY, self.images, self.labels
      )
      accuracies = (np.asarray(predicted).T == labels).mean(-1)
      reached = np.asarray(backdoored).T == np.asarray(targets)
      return accuracies, reached[..., np.asarray(counts)].mean(-1)

    return run


def ours(task: PruningTask):
  """Make the whole curve in one pass over each set of images."""
  function = incremental_pruning.predict_prefixes(task.model, task.layer)
  return task.evaluate(function, (task.weights, task.order))


def one_evaluation(task: PruningTask):
  """Make the accuracy and success rate of the network without pruning."""
  return task.evaluate(batching.predictions(task.model), task.weights)


def point_by_point(task: PruningTask, points: int):
  """Make one evaluation a point, with the masks as data: compiled once."""
  predict = batching.predictions(masking.masked(task.model))
  run = task.evaluate(predict, None)
  pruned = [
    masking.prune(task.weights, {task.layer: mask})
    for mask in task.masks[:points]
  ]
  return lambda: [run(weights) for weights in pruned]


def from_images(
  case: script.Case, count: int, batch: int, points: int
) -> Comparison:
  """Compare the curve with all that it takes, and single evaluations."""
  task = PruningTask(case, count, batch)
  total = len(task.masks)
  points = min(points, total)
  slow = f"one evaluation a point, compiled once ({points} points)"
  functions = {
    f"ours, {total} points": ours(task),
    "one evaluation, nothing pruned": one_evaluation(task),
    slow: point_by_point(task, points),
  }
  parts = {slow: points / total}
  peer = peers.load("pruning")
  if peer:
    net = peers.load("networks").make(case, script.CLASSES, task.weights)
    name = f"torch, one evaluation a point ({points} points)"
    functions[name] = peer.point_by_point(net, task, task.masks[:points])
    parts[name] = points / total
  forward = forward_operations(case, script.CLASSES)
  return Comparison(
    f"pruning curve from images, {case}, {total} points, {count} images",
    functions,
    item="curve",
    parts=parts,
    operations=2 * forward * count,
    traffic=roofline.size(task.images, task.weights),
    goal="100 times one evaluation a point; one evaluation takes at least "
    "0.95 times as long",
  )


def head_only(model: models.Model, layer: str) -> models.Model:
  """Make a network whose images are the features: its layer passes them on."""

  def apply(params, batch_stats, features, *, train=False, tap):
    del train
    return model.head(params, batch_stats, tap(layer, features)), batch_stats

  return model._replace(
    apply=apply, features=lambda params, batch_stats, features: features
  )


def cached(task: PruningTask, count: int) -> jax.Array:
  """Draw features, at least 0, float32 [N,h,w,C].

  Pooled where that is all that the head does before its linear layer.
  """
  like = jax.eval_shape(
    task.model.features,
    *task.weights,
    jax.ShapeDtypeStruct((1, *task.case.shape), jnp.float32),
  )
  height, width, channels = like.shape[1:]
  if task.case.model == "resnet18":
    height = width = 1
  shape = (count, height, width, channels)
  return jnp.abs(jax.random.normal(script.KEY, shape))


def ours_cached(task: PruningTask, features, labels, batch):
  """Make the accuracies of all points from features."""
  model = head_only(task.model, task.layer)
  predict = incremental_pruning.predict_prefixes(model, task.layer)

  def accuracies(weights, order, features, labels):
    def count_correct(args):
      predicted = predict((weights, order), script.KEY, args[0])
      return (predicted == args[1][:, None]).sum(0)

    count = len(features)
    cut = [x.reshape(-1, batch, *x.shape[1:]) for x in (features, labels)]
    return jax.lax.map(count_correct, cut).sum(0) / count

  run = compiler.jit(accuracies)
  return lambda: run(task.weights, task.order, features, labels)


def from_features(case: script.Case, count: int) -> Comparison:
  """Compare the curve from cached features and torch's loop over points."""
  task = PruningTask(case, 1, 1)
  features, labels = cached(task, count), script.labels(count)
  batch = next(b for b in range(min(count, 500), 0, -1) if count % b == 0)
  functions = {
    "ours, all points in one call": ours_cached(task, features, labels, batch)
  }
  peer = peers.load("pruning")
  if peer:
    net = peers.load("networks").make(case, script.CLASSES, task.weights)
    functions["torch, head by head"] = peer.heads(
      net, features, labels, task.masks
    )
  model, weights = task.model, task.weights
  head = jax.jit(model.head).lower(*weights, features[:1]).cost_analysis()
  return Comparison(
    f"pruning curve from features, {case}, {len(task.masks)} points, "
    f"{count} images",
    functions,
    item="curve",
    operations=head["flops"] * count * len(task.masks),
    traffic=roofline.size(features),
  )


def comparisons(
  options: script.Options, images: int, features: int, batch: int, points: int
):
  """Compare each network's curves, from images and from features."""
  for case in script.cases(options):
    default = 2048 if case.model == "cnn" else 128
    yield from_images(case, images or default, batch, points)
    yield from_features(case, features)


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
