#!/bin/sh
# From a clone to a running experiment: ./launch.sh ban --dataset=cifar10
#
# Makes .venv beside this file, installs what requirements.txt says in the
# versions of constraints.txt, and runs python -m experiments.NAME. A stamp in
# .venv says what was installed whole, so that the next call starts at once
# and a call that died is repaired. Needs a Python >= 3.11 with venv; uses uv
# where it is installed.
set -eu

self=$(readlink -f -- "$0" 2>/dev/null) || self=$0
here=$(CDPATH='' cd -- "$(dirname -- "$self")" && pwd -P)
venv=$here/.venv
stamp=$venv/launch.stamp

say() { printf 'launch.sh: %s\n' "$*" >&2; }
fail() { status=$1 && shift && say "$@" && exit "$status"; }

experiments() { # the scripts, not the modules that they share
  grep -l '^if __name__ == "__main__":' "$here"/experiments/*.py |
    sed 's|.*/||; s|\.py$||'
}

usage() {
  cat <<'END'
usage: ./launch.sh [--accelerator=auto|cpu|cuda|tpu] COMMAND [FLAGS]

Sets up .venv when it has to, then runs COMMAND with its FLAGS.

experiments:
END
  for name in $(experiments); do # the first line of each one's docstring
    printf '  %-18s %s\n' "$name" "$(sed -n '/^[rR]\{0,1\}"""/ {
      s/^[rR]\{0,1\}"""//; s/""".*//; p; q; }' "$here/experiments/$name.py")"
  done
  cat <<'END'

other commands:
  test [--all] [ARGS]  run the tests with pytest; --all: the slow ones too
  docs [ARGS]          build the documentation, into docs/_build/html
  setup [--print]      only set up; --print only says what that would install
  help                 this page

./launch.sh NAME --help explains the flags of an experiment. Relative paths,
and the results in runs/, belong to the directory that you call from. An
attack without any flag trains its benchmark first, runs/clean-digits.

  --accelerator  the jax to install: auto (default) asks for an NVIDIA GPU,
                 then for a TPU; cpu also keeps a run off an accelerator
  PYTHON=...     the Python to make .venv with (default: a python3 >= 3.11)
END
}

# --- which Python, which accelerator ----------------------------------------

find_python() { # sets python, to make .venv with
  if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
  else
    set -- python3 python3.13 python3.12 python3.11
  fi
  for python; do
    # Run each one: a pyenv shim exists even where its version is switched off.
    "$python" -c 'import ensurepip, sys, venv
sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  done
  [ -z "${PYTHON:-}" ] ||
    fail 1 "PYTHON=$PYTHON must be a Python 3.11 or newer with its venv module"
  fail 1 "no Python 3.11 or newer with its venv module found: install one" \
    "(Debian and Ubuntu: apt install python3-venv), or name it with" \
    "PYTHON=/path/to/python3"
}

# Sets extra and reason from the driver, where there is a GPU; else fails.
# jax's documentation: CUDA 13 needs driver 580 and compute capability 7.5,
# CUDA 12 needs driver 525.
find_cuda() {
  gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap \
    --format=csv,noheader 2>/dev/null) || return 1
  reason="NVIDIA driver ${gpus%%,*}"
  extra=$(printf '%s\n' "$gpus" | awk -F ', *' '
    NR == 1 { driver = int($1) }
    $2 + 0 > 0 && $2 + 0 < 7.5 { old = 1 }
    END {
      print driver < 1 ? "none" : driver < 525 ? "cpu" : \
        driver < 580 || old ? "cuda12" : "cuda"
    }')
  [ "$extra" != cpu ] ||
    reason="$reason is too old for CUDA 12: update it to 525 or newer"
  [ "$extra" != none ]
}

# The table by which jax itself knows a TPU, as the kernel spells PCI ids.
# TPU_NAME is for containers that hide the PCI bus.
find_tpu() {
  extra=tpu reason="a TPU on the PCI bus"
  grep -qsiE 'PCI_ID=1AE0:(0027|0056|005E|0062|0063|006F|0076|0083|007C)' \
    /sys/bus/pci/devices/*/uevent && return
  [ -n "${TPU_NAME:-}" ] && { [ -c /dev/accel0 ] || [ -d /dev/vfio ]; }
}

find_accelerator() { # sets extra: cpu or an extra of pyproject.toml; and reason
  case $1 in
    auto)
      find_cuda || find_tpu || {
        extra=cpu reason="no NVIDIA GPU and no TPU found"
        return
      }
      [ "$extra" != cpu ] || say "using the CPU: $reason"
      ;;
    cuda) # without a GPU to ask (an image being built), the newest
      find_cuda || extra=cuda reason="as asked"
      [ "$extra" != cpu ] || fail 1 "$reason, or use --accelerator=cpu"
      ;;
    cpu | tpu) extra=$1 reason="as asked" ;;
    *) fail 2 "unknown accelerator '$1': use auto, cpu, cuda or tpu" ;;
  esac
}

# --- setting up -------------------------------------------------------------

minor_version() { "$1" -V 2>&1 | cut -d . -f 1,2; }

fingerprint() { # one word that changes when what should be installed does
  { minor_version "$venv/bin/python"
    cd -- "$here" && cat requirements.txt constraints.txt pyproject.toml
  } | cksum | tr -s ' \t' -
}

# Sets state: ready, incomplete (packages can be added to .venv) or missing (to
# be made); and extras, of pyproject.toml, that .venv is to hold.
inspect() {
  state=missing extras="$extra${group:+ $group}" have_print='' have='' groups=''
  [ ! -f "$stamp" ] || read -r have_print have groups <"$stamp" || return 0
  # An install that died may have left half a package, which pip trusts.
  [ "$have_print" != unfinished ] &&
    "$venv/bin/python" -I -c 'import pip, tomllib' 2>/dev/null || return 0
  [ -z "${PYTHON:-}" ] ||
    [ "$(minor_version "$PYTHON")" = "$(minor_version "$venv/bin/python")" ] ||
    return 0
  # jax takes one kind of accelerator at a time. With a GPU it also runs on a
  # CPU, and CUDA 12 also runs on the drivers of CUDA 13.
  case $have:$extra in
    :* | cpu:*) have=$extra ;;
    "$extra:$extra" | *:cpu | cuda12:cuda) ;;
    *) return 0 ;;
  esac
  # What is there stays, and moves with the rest to the new versions.
  extras=$(echo $have $(printf '%s\n' $groups $group | sort -u))
  state=incomplete
  [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint) $extras" ] || state=ready
}

extra_packages() { # what pyproject.toml lists under the extras that are wanted
  "$python" -I -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
  extras = tomllib.load(file)["project"]["optional-dependencies"]
for name in sys.argv[2:]:
  print(*extras.get(name, []), sep="\n")
' "$here/pyproject.toml" $extras | sed '/^$/d'
}

# Waits until no other launch.sh sets up this .venv. The lock is the open file,
# so it dies with its holders: pip too, where only the shell was killed.
lock() {
  mkdir -p "$venv" 2>/dev/null && [ -w "$venv" ] ||
    fail 1 "cannot write to $venv: make it writable, or free some space"
  exec 9>>"$venv/launch.lock"
  "$python" -I -c '
import fcntl, sys
try:
  fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
  print("launch.sh: waiting for another launch.sh to set up", file=sys.stderr)
  fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
  pass  # A file system without locks: as good as it gets.
'
}

choose_python() {
  if [ $state = missing ]; then find_python; else python=$venv/bin/python; fi
}

install() { # uv where there is one; pip may know a mirror that uv does not
  set -- -r "$here/requirements.txt" -r "$venv/launch.packages" \
    -c "$here/constraints.txt"
  uv pip install --python "$venv/bin/python" "$@" ||
    "$venv/bin/python" -I -m pip install --no-user --no-input \
      --disable-pip-version-check "$@"
}

set_up() {
  inspect
  [ $state != ready ] || return 0
  choose_python
  lock
  inspect # Another launch.sh may have done it meanwhile.
  [ $state != ready ] || return 0
  choose_python
  if [ $state = missing ]; then
    say "making .venv with $("$python" --version 2>&1)"
    # Empty it of all but the lock, which another launch.sh may wait for.
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name launch.lock \
      -exec rm -rf {} + || fail 1 "cannot empty $venv: remove it by hand"
    echo unfinished >"$stamp"
    "$python" -m venv "$venv" >&2 ||
      fail 1 "$python could not make $venv: see the error above"
  fi
  extra_packages >"$venv/launch.packages"
  say "installing the packages, for ${extras%% *} ($reason):" \
    "minutes the first time, progress in .venv/launch.log"
  echo unfinished >"$stamp"
  # pip ends a Ctrl-C half-way and calls it an error: not one to take up from.
  trap 'exit 130' INT
  code=0
  install >"$venv/launch.log" 2>&1 || code=$?
  trap - INT
  if [ "$code" -ne 0 ]; then
    grep '^ERROR' "$venv/launch.log" >&2 || tail -n 20 "$venv/launch.log" >&2
    # pip takes back what it did when it fails, but not when it is killed.
    [ "$code" -gt 128 ] || rm -f "$stamp"
    fail 1 "pip could not install the packages: see its error above, and" \
      ".venv/launch.log"
  fi
  echo "$(fingerprint) $extras" >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

print_plan() {
  inspect
  choose_python
  printf 'environment  %s, %s\n' "$venv" "$state"
  printf 'python       %s (%s)\n' "$("$python" --version)" "$python"
  printf 'accelerator  %s (%s)\n' "$extra" "$reason"
  { echo requirements.txt && extra_packages; } | sed 's/^/install      /'
}

# --- the command line -------------------------------------------------------

accelerator=auto
while [ $# -gt 0 ]; do
  case $1 in
    --accelerator=*) accelerator=${1#*=} ;;
    -h | --help) usage && exit ;;
    -*) fail 2 "unknown option '$1': see ./launch.sh help" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || { usage && exit; }

command=$1 group=''
shift
case $command in
  help) usage && exit ;;
  test) group=dev ;;
  docs) group=docs ;;
  setup)
    case $* in '' | --print) ;; *) fail 2 "setup takes --print only" ;; esac
    ;;
  *)
    experiments | grep -qxF -- "$command" ||
      fail 2 "no experiment '$command': use one of" \
        "$(experiments | paste -s -d , - | sed 's/,/, /g')" \
        "(./launch.sh help says more)"
    ;;
esac

find_accelerator "$accelerator"
if [ "$command:$*" = setup:--print ]; then
  print_plan
  exit
fi
set_up
exec 9>&- # The lock: nothing that runs should hold it.

# -P: an experiments/ folder where the user stands is not this one. exec: the
# run has this process's id, and gets its signals.
run() { exec "$venv/bin/python" -P "$@"; }
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
[ "$accelerator" != cpu ] || export JAX_PLATFORMS=cpu
# Large pages for large arrays, where the C library knows how (glibc 2.35): the
# steps of a large network on a CPU spend less time on page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
case $command in
  setup) say "ready" && exit ;;
  test)
    cd -- "$here"
    # pyproject.toml leaves the slow tests out; a later -m overrides it.
    [ "${1:-}" != --all ] || { shift && set -- -m '' "$@"; }
    run -m pytest -n 2 --dist worksteal "$@"
    ;;
  docs)
    cd -- "$here"
    run -m sphinx -W -b html docs docs/_build/html "$@"
    ;;
esac
if [ $# -gt 0 ] || [ -e runs/clean-digits/results.json ] ||
  ! grep -q 'main_attack(' "$here/experiments/$command.py"; then
  run -m "experiments.$command" "$@"
fi
say "training the benchmark first, without a backdoor: runs/clean-digits"
run -c '
import os, signal, subprocess, sys
run = [sys.executable, "-P", "-m"]
clean = subprocess.Popen(
  [*run, "experiments.clean"], stdout=subprocess.DEVNULL)
# A terminal sends Ctrl-C to both; any other signal comes here alone.
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: clean.terminate())
status = clean.wait()
if status:
  sys.exit(status if status > 0 else 128 - status)
os.execv(sys.executable, [*run, "experiments." + sys.argv[1]])
' "$command"
