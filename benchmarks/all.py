"""All benchmarks, and the page RESULTS.md of their results.

python -m benchmarks.all                                 # all of them
python -m benchmarks.all --only=strip,cban_step          # these again
python -m benchmarks.all --only=strip -- --models=cnn    # with their flags

Each is a process of its own. Their lines of JSON go to `results.jsonl`, those
of the same benchmark and claim are replaced, and RESULTS.md is written from
that file: `--only=` runs none and only writes it. `-- --tiny` runs them all in
minutes, only to see that they run, and leaves the results as they are.
"""

import pathlib
import subprocess
import sys

from absl import app, flags

from benchmarks import results

NAMES = (
  "ceiling",
  "training_step",
  "convolution",
  "strip",
  "neural_cleanse",
  "pruning_curve",
  "cban_step",
  "augmentation",
  "startup",
  "scaling",
  "defenses",
)
_ONLY = flags.DEFINE_list("only", list(NAMES), "Names, with commas.")
_FRESH = flags.DEFINE_bool("fresh", False, "Results of before are discarded.")
_OUTPUT = flags.DEFINE_string(
  "output", str(pathlib.Path(__file__).parent), "Directory of both files."
)


def run(name: str, arguments: list[str]) -> str:
  """Run a benchmark, show its output and return it."""
  command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
  print("$ python", *command[1:], flush=True)
  lines = []
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    for line in process.stdout or ():
      lines.append(line)
      if not line.startswith('{"'):
        print(line, end="", flush=True)
  if process.returncode:
    print(f"benchmarks.{name} ended with {process.returncode}", flush=True)
  return "".join(lines)


def main(argv: list[str]) -> None:
  """Run the benchmarks asked for, one after the other."""
  unknown = set(_ONLY.value) - set(NAMES)
  if unknown:
    raise app.UsageError(
      f"--only must be of {', '.join(NAMES)} (got {', '.join(sorted(unknown))})"
    )
  directory = pathlib.Path(_OUTPUT.value)
  path = directory / "results.jsonl"
  lines = [] if _FRESH.value else results.read(path)
  for name in _ONLY.value:
    lines = results.merge(lines, results.parse(run(name, argv[1:])))
    results.write(path, lines)
    (directory / "RESULTS.md").write_text(results.render(lines))
  (directory / "RESULTS.md").write_text(results.render(lines))


if __name__ == "__main__":
  app.run(main)
