"""A program that converts a pickled state dict to safetensors.

`pytorch.read` runs it in another process, because torch bounds no memory when
it unpickles, even with `weights_only=True`: a file of a kilobyte can ask for
all of it. Imports nothing of bdjax, so that it starts quickly. Exits
with 1 and a line on stderr where the file is refused.
"""

import os
import pathlib
import sys

import torch
from safetensors.numpy import save_file

# Training scripts store the state dict under these names, beside the rest.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def limit_memory(size: int) -> None:
  """Limit this process to the memory that a file of `size` bytes can need."""
  try:
    import resource

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  except (ImportError, OSError):  # not Linux
    return
  now = pages * os.sysconf("SC_PAGE_SIZE")
  # Read, unpickled, as float32 and as bytes again; the rest is torch's own.
  limit = now + 6 * size + 2**29
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  if hard == resource.RLIM_INFINITY or limit < hard:
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def load(path: str):
  """Unpickle a file; torch's unpickler calls nothing but its own functions."""
  try:
    return torch.load(path, map_location="cpu", weights_only=True)
  # Its message says how to load the file regardless: it is not passed on.
  except Exception:
    sys.exit(
      "torch does not open it with weights_only=True: it is damaged, too much "
      "for memory, or holds code or objects beside weights"
    )


def state_dict(loaded, size: int) -> dict:
  """Return the float32 arrays by name, out of the unpickled object."""
  if isinstance(loaded, dict):
    wrapped = (loaded.get(key) for key in WRAPPERS)
    loaded = next((x for x in wrapped if isinstance(x, dict)), loaded)
  if not isinstance(loaded, dict) or not loaded:
    sys.exit("it holds no state dict")
  for name, tensor in loaded.items():
    shown = ascii(name)[:80]
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
      sys.exit(f"{shown} is {type(tensor).__name__}, not a named tensor")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
      sys.exit(f"{shown} is sparse or has no values")
    if tensor.ndim and not tensor.is_floating_point():
      sys.exit(f"{shown} is {tensor.dtype}: it must be of floats")
  # A few bytes can be expanded to a tensor of any size.
  declared = sum(t.numel() * t.element_size() for t in loaded.values())
  if declared > size:
    sys.exit(f"it declares {declared} bytes of weights in a file of {size}")
  return {
    # Through float32, since numpy has no bfloat16.
    name: tensor.detach().to(torch.float32).contiguous().numpy()
    for name, tensor in loaded.items()
    if tensor.is_floating_point()  # not the counters of batches
  }


def main(source: str, target: str) -> None:
  """Convert the file `source` to the safetensors file `target`."""
  size = os.path.getsize(source)
  torch.set_num_threads(1)  # threads take address space, which is limited
  limit_memory(size)
  save_file(state_dict(load(source), size), target)


if __name__ == "__main__":
  main(*sys.argv[1:])
