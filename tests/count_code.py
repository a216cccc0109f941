"""Prints counts of the code: sizes, docstrings, the way of a configuration.

python -m tests.count_code                 # of this checkout
python -m tests.count_code --root=OTHER    # of another one, perhaps older

Lines of a file, and of a function with its decorators and nested functions:
all lines, and those that are not blank. Docstrings: of modules, and of classes,
functions and methods whose names, and those of what they stand in, do not begin
with `_`; nested functions are not counted.

The way of a configuration: `experiments.ban` runs on digits, four channels
wide, for one epoch. Every call of a function of the repository is noted that is
given an instance of a class named `...Config`, alone or as a field of a
NamedTuple; reading a property of it is no call. Counted are the files of these
functions, the visits (a file after another one) and the returns (visits of a
file that was visited before). "Entered" are all files of which a function ran.
"""

import argparse
import ast
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

PACKAGES = ("bdjax", "experiments")
LIMIT = 2500  # lines of experiments/
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef

# Runs in a process of its own, in the checkout that is counted.
_TRACE = r"""
import json, pathlib, runpy, sys

root, out = pathlib.Path.cwd(), sys.argv[1]
sys.path.insert(0, str(root))
inside = tuple(f"{root}/{name}/" for name in ("bdjax", "experiments"))
files, entered = [], set()

def is_config(value):
  kind = type(value)
  return kind.__name__.endswith("Config") and kind.__module__.startswith(
    ("bdjax", "experiments", "__main__"))

def note(frame, event, argument):
  if event != "call" or not frame.f_code.co_filename.startswith(inside):
    return
  if frame.f_code.co_name.startswith("<"):
    return  # comprehensions and modules
  code = frame.f_code
  file = code.co_filename[len(str(root)) + 1 :]
  entered.add(file)
  names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
  for name in names:
    value = None if name == "self" else frame.f_locals.get(name)
    fields = value if hasattr(value, "_fields") else ()
    if is_config(value) or any(is_config(field) for field in fields):
      if not files or files[-1] != file:
        files.append(file)
      return

sys.argv = ["ban", f"--runs_dir={out}", "--width=4", "--epochs=1"]
sys.setprofile(note)
try:
  runpy.run_module("experiments.ban", run_name="__main__", alter_sys=True)
except SystemExit as end:
  assert not end.code, end.code
finally:
  sys.setprofile(None)
pathlib.Path(out, "trace.json").write_text(
  json.dumps([files, sorted(entered)]))
"""


def _numbers(values: list[int]) -> str:
  """Write median, 90th percentile and maximum."""
  values = sorted(values)
  p90 = values[min(len(values) - 1, int(0.9 * len(values)))]
  return f"{statistics.median(values):.0f} / {p90} / {values[-1]}"


def _not_blank(lines: list[str]) -> int:
  return sum(bool(line.strip()) for line in lines)


def _functions(tree: ast.AST, lines: list[str]) -> list[list[str]]:
  """Return the lines of every function."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, _FUNCTION):
      first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
      found.append(lines[first - 1 : node.end_lineno])
  return found


def _documented(node: ast.AST) -> list[bool]:
  """Tell of every public definition whether it has a docstring."""
  found = [ast.get_docstring(node) is not None]
  if isinstance(node, _FUNCTION):
    return found
  for child in node.body:
    if isinstance(child, _FUNCTION | ast.ClassDef) and child.name[0] != "_":
      found += _documented(child)
  return found


def count_package(folder: pathlib.Path) -> dict[str, str]:
  """Count files, functions and docstrings of a package."""
  files, functions, documented = [], [], []
  for path in sorted(folder.rglob("*.py")):
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    files.append(lines)
    functions += _functions(tree, lines)
    if lines:
      documented += _documented(tree)
  files = [lines for lines in files if lines]
  return {
    "files": str(len(files)),
    "lines": f"{sum(map(len, files)):,}",
    "not blank": f"{sum(map(_not_blank, files)):,}",
    "lines a file": _numbers([len(lines) for lines in files]),
    "  not blank": _numbers([_not_blank(lines) for lines in files]),
    "lines a function": _numbers([len(lines) for lines in functions]),
    "  not blank ": _numbers([_not_blank(lines) for lines in functions]),
    "functions over 40 lines": str(sum(len(f) > 40 for f in functions)),
    "files over 250 lines": str(sum(len(f) > 250 for f in files)),
    "public docstrings": f"{sum(documented)} of {len(documented)}",
  }


def trace_configuration(root: pathlib.Path) -> list[list[str]]:
  """Run a tiny attack: the visits of its configuration, the files entered."""
  with tempfile.TemporaryDirectory() as out:
    done = subprocess.run(
      [sys.executable, "-c", _TRACE, out],
      cwd=root,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
      capture_output=True,
      text=True,
    )
    if done.returncode:
      raise SystemExit(done.stderr)
    return json.loads((pathlib.Path(out) / "trace.json").read_text())


def main() -> None:
  """Print all counts."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  here = pathlib.Path(__file__).resolve().parent.parent
  parser.add_argument("--root", type=pathlib.Path, default=here)
  parser.add_argument("--files", action="store_true", help="list the visits")
  arguments = parser.parse_args()
  root = arguments.root.resolve()
  counts = {name: count_package(root / name) for name in PACKAGES}
  print(f"{'median / p90 / max':26}" + "".join(f"{n:>22}" for n in PACKAGES))
  for row in counts["bdjax"]:
    cells = "".join(f"{counts[name][row]:>22}" for name in PACKAGES)
    print(f"{row:26}{cells}")
  lines = counts["experiments"]["lines"]
  print(f"\nexperiments/: {lines} lines, at most {LIMIT:,} wanted")
  visits, entered = trace_configuration(root)
  ours = [f for f in entered if f.startswith(("experiments/", "bdjax/runs/"))]
  files = set(visits)
  print(
    f"the configuration of `ban`: {len(files)} files, {len(visits)} visits, "
    f"{len(visits) - len(files)} returns"
  )
  print(
    f"files entered: {len(entered)}; of experiments/, bdjax/runs/ {len(ours)}"
  )
  if arguments.files:
    print("  " + "\n  ".join(visits))


if __name__ == "__main__":
  main()
