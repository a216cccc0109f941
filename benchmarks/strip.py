"""STRIP: ours in chunks, against ART's and a loop over overlays in torch.

python -m benchmarks.strip
python -m benchmarks.strip --models=resnet18 --inputs=4000 --bf16      # GPU

Each input is blended half and half with as many overlays, and the entropies of
the predictions are averaged. The peers: `art.defences`' STRIP, which goes input
by input and predicts in batches of at most 128; and the loop of BackdoorBench
and TrojanZoo, in which one overlay is laid over all inputs at a time.

Operations: inputs x overlays forward passes.
"""

from bdjax import batching, sharding
from bdjax.defenses import strip
from benchmarks import peers, roofline, script
from benchmarks.plain.networks import forward_operations
from benchmarks.timing import Comparison

FLAGS = {
  "inputs": script.Flag(0, "Inputs; 0: 200 for cnn, 2 for others.", 3),
  "overlays": script.Flag(100, "Overlays of each input.", 2),
  "chunk": script.Flag(0, "Inputs at a time; 0: the library's default."),
}


def ours(case, images, pool, overlays, chunk=0):
  """Make our entropies of all images, float32 [N]."""
  model, weights = script.network(case)
  mesh = sharding.make_mesh()
  default = strip.max_batch_size(overlays, case.shape, devices=mesh.size)
  run = batching.over_images(
    strip.entropies(model, overlays, "blend"), chunk or default, mesh
  )
  return lambda: run((weights, pool), script.KEY, images)


def torch_peers(case, images, pool, overlays):
  """Make the loop over overlays in two layouts, and ART's STRIP."""
  peer = peers.load("strip")
  if peer is None:
    return {}
  networks = peers.load("networks")
  _, weights = script.network(case)
  functions = {}
  for name, last in (("", False), (", channels_last", True)):
    net = networks.make(case, script.CLASSES, weights, last)
    functions[f"torch, overlay by overlay{name}"] = peer.entropies(
      net, images, pool, overlays, channels_last=last, bf16=case.bf16
    )
  if peers.package("art"):
    net = networks.make(case, script.CLASSES, weights)
    art = peers.load("art_strip")
    functions["ART, input by input"] = art.entropies(
      net, images, overlays, case
    )
  return functions


def compare(
  case: script.Case, inputs: int, overlays: int, chunk: int = 0
) -> Comparison:
  """Compare one network's entropies by us and by the peers."""
  images = script.images(inputs, case)
  pool = script.images(2 * overlays, case)
  _, weights = script.network(case)
  forward = forward_operations(case, script.CLASSES)
  return Comparison(
    f"STRIP, {case}, {inputs} inputs x {overlays} overlays",
    {
      "ours, inputs in chunks": ours(case, images, pool, overlays, chunk),
      **torch_peers(case, images, pool, overlays),
    },
    item="input",
    items=inputs,
    operations=forward * inputs * overlays,
    traffic=roofline.size(images, pool, weights),
  )


def comparisons(
  options: script.Options, inputs: int, overlays: int, chunk: int
):
  """Compare each network's entropies."""
  for case in script.cases(options):
    default = 200 if case.model == "cnn" else 2
    yield compare(case, inputs or default, overlays, chunk)


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
