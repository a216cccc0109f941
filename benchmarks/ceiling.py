"""The ceilings of this machine: a large matrix product and a large copy.

python -m benchmarks.ceiling

Every other benchmark measures these ceilings in its own run and says which
share it reaches; `roofline.py` says how.
"""

import jax
import jax.numpy as jnp

from benchmarks import peers, roofline, script
from benchmarks.timing import Comparison

FLAGS = {"side": script.Flag(0, "Side of the matrices; 0: by the device.", 16)}


def comparisons(options: script.Options, side: int):
  """Compare one product and one copy, ours and torch's."""
  side = side or roofline.matrix_side()
  a = jnp.ones((side, side), jnp.bfloat16 if options.bf16 else jnp.float32)
  x = jnp.ones((16, side, side), jnp.float32)
  product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1.0)
  products = {"JAX": lambda: product(a, a)}
  copies = {"JAX": lambda: copy(x)}
  torch_peer = peers.load("arithmetic")
  if torch_peer:
    products["torch"] = torch_peer.product(side, options.bf16)
    copies["torch"] = torch_peer.copy((16, side, side))
  yield Comparison(
    f"matrix product, {side} x {side}",
    products,
    operations=2.0 * side**3,
    traffic=3.0 * a.nbytes,
  )
  yield Comparison(
    f"copy of {x.nbytes / 2**20:.0f} MiB",
    copies,
    operations=float(x.size),
    traffic=2.0 * x.nbytes,
  )


if __name__ == "__main__":
  script.main(comparisons, FLAGS)
