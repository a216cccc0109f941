#!/bin/sh
# From a clone to a running experiment: ./launch.sh ban --dataset=cifar10
#
# Makes .venv beside this file, installs what requirements.txt says, and runs
# python -m experiments.NAME. A stamp in .venv says what was installed whole,
# so that the next call starts at once and a call that died is made good.
# Needs a Python >= 3.11 with its venv module, and nothing else.
set -eu

self=$(readlink -f -- "$0" 2>/dev/null) || self=$0
here=$(CDPATH='' cd -- "$(dirname -- "$self")" && pwd -P)
venv=$here/.venv
stamp=$venv/launch.stamp

say() { printf 'launch.sh: %s\n' "$*" >&2; }

fail() { # fail STATUS MESSAGE
  status=$1
  shift
  say "$@"
  exit "$status"
}

# --- what there is to run ---------------------------------------------------

experiments() {
  for file in "$here"/experiments/*.py; do
    name=$(basename -- "$file" .py)
    case $name in common | _* | '*') ;; *) printf '%s\n' "$name" ;; esac
  done
}

usage() {
  cat <<'END'
usage: ./launch.sh [--accelerator=auto|cpu|cuda|tpu] COMMAND [FLAGS]

Sets up .venv when it has to, then runs COMMAND with its FLAGS.

experiments:
END
  for name in $(experiments); do
    # The first line of the module's docstring.
    about=$(sed -n 's/^[rR]\{0,1\}"""//; t found
      d
      :found
      s/""".*//; p; q' "$here/experiments/$name.py")
    printf '  %-18s %s\n' "$name" "$about"
  done
  cat <<'END'

other commands:
  test [ARGS]        run the tests with pytest, from the repository's root
  setup [--print]    only set up; --print only says what that would install
  help               this page

./launch.sh NAME --help explains the flags of an experiment. Relative paths,
and the results in runs/, belong to the directory that you call from.

  --accelerator  the jax to install: auto (default) asks for an NVIDIA GPU,
                 then for a TPU; cpu also keeps a run off an accelerator
  PYTHON=...     the Python to make .venv with (default: a python3 >= 3.11)
END
}

# --- which Python, which accelerator ----------------------------------------

# Sets python: the interpreter to make .venv with.
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
  else
    set -- python3 python3.13 python3.12 python3.11
  fi
  without_venv=
  for python; do
    # Run each one: a pyenv shim exists even where its version is switched off.
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null || continue
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    without_venv=$python
  done
  [ -z "$without_venv" ] || fail 1 "$without_venv comes without venv: install" \
    "it (Debian and Ubuntu: apt install python3-venv) or name another Python" \
    "with PYTHON=/path/to/python3"
  [ -z "${PYTHON:-}" ] || fail 1 "PYTHON=$PYTHON is not a Python 3.11 or" \
    "newer: name one that is"
  fail 1 "no Python 3.11 or newer found: install one, or name it with" \
    "PYTHON=/path/to/python3"
}

# Sets extra and reason from the driver, where there is a GPU; else fails.
find_cuda() {
  gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap \
    --format=csv,noheader 2>/dev/null) || return 1
  driver=${gpus%%,*}
  case ${driver%%.*} in '' | *[!0-9]*) return 1 ;; esac
  reason="NVIDIA driver $driver"
  # jax's documentation: CUDA 13 needs driver 580, CUDA 12 needs 525. CUDA 13
  # has no code for chips before compute capability 7.5.
  if [ "${driver%%.*}" -lt 525 ]; then
    extra=cpu
    reason="$reason is too old for CUDA 12: update it to 525 or newer"
  elif [ "${driver%%.*}" -lt 580 ]; then
    extra=cuda12
    reason="$reason, CUDA 13 needs 580"
  elif printf '%s\n' "$gpus" |
    awk -F ', *' '$2 + 0 > 0 && $2 + 0 < 7.5 { old = 1 } END { exit !old }'
  then
    extra=cuda12
    reason="$reason, a GPU too old for CUDA 13"
  else
    extra=cuda
  fi
}

# The table by which jax itself knows a TPU, as the kernel spells PCI ids.
# TPU_NAME is for containers that hide the PCI bus.
tpu_present() {
  grep -qsiE 'PCI_ID=1AE0:(0027|0056|005E|0062|0063|006F|0076|0083|007C)' \
    /sys/bus/pci/devices/*/uevent && return
  [ -n "${TPU_NAME:-}" ] && { [ -c /dev/accel0 ] || [ -d /dev/vfio ]; }
}

# Sets extra: cpu, or the extra of pyproject.toml to install; and reason.
find_accelerator() { # find_accelerator auto|cpu|cuda|tpu
  extra=$1
  reason="as asked"
  case $1 in
    auto)
      if find_cuda; then
        [ "$extra" != cpu ] || say "using the CPU: $reason"
      elif tpu_present; then
        extra=tpu reason="a TPU on the PCI bus"
      else
        extra=cpu reason="no NVIDIA GPU and no TPU found"
      fi
      ;;
    cuda)
      # Without a GPU to ask (an image being built), the newest.
      find_cuda || extra=cuda
      [ "$extra" != cpu ] || fail 1 "$reason, or use --accelerator=cpu"
      ;;
    cpu | tpu) ;;
    *) fail 2 "unknown accelerator '$1': use auto, cpu, cuda or tpu" ;;
  esac
}

# --- setting up -------------------------------------------------------------

# One line that changes when what should be installed does.
fingerprint() {
  "$venv/bin/python" -I -c '
import hashlib, sys
text = repr(sys.version_info[:2]).encode()
for path in sys.argv[1:]:
  with open(path, "rb") as file:
    text += file.read()
print(hashlib.sha256(text).hexdigest())
' "$here/requirements.txt" "$here/pyproject.toml" 2>/dev/null
}

# Whether .venv has the Python that the user names, if one is named.
python_as_asked() {
  [ -n "${PYTHON:-}" ] || return 0
  version='import sys; print(sys.version_info[:2])'
  asked=$("$PYTHON" -c "$version" 2>/dev/null) || return 1
  [ "$asked" = "$("$venv/bin/python" -c "$version")" ]
}

# Whether the accelerator in .venv serves: jax with a GPU also runs on a CPU,
# and CUDA 12 also runs on the drivers of CUDA 13.
accelerator_serves() {
  case $extra:$have_extra in
    cpu:?* | cuda:cuda12) ;;
    *) [ "$extra" = "$have_extra" ] ;;
  esac
}

# Whether .venv holds all that is wanted. Sets have_*, from the stamp.
ready() {
  have_print='' have_extra='' have_dev=''
  [ -f "$stamp" ] || return 1
  read -r have_print have_extra have_dev <"$stamp" || return 1
  [ "$have_print" = "$(fingerprint)" ] && python_as_asked || return 1
  accelerator_serves || return 1
  [ "$dev" = no ] || [ "$have_dev" = yes ]
}

# Whether packages can be added to .venv as it stands. After ready.
sound() {
  # An install that died may have left half a package, which pip trusts.
  [ "$have_print" != unfinished ] || return 1
  # jax takes one kind of accelerator at a time.
  case $have_extra in '' | cpu) ;; *) accelerator_serves || return 1 ;; esac
  "$venv/bin/python" -I -c '
import pip, sys
sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python_as_asked
}

# Waits until no other launch.sh sets up this .venv. The lock is the open file,
# so it dies with its holders: pip too, where only the shell was killed.
lock() {
  mkdir -p "$venv" 2>/dev/null && [ -w "$venv" ] ||
    fail 1 "cannot write to $venv: make it writable, or free some space"
  exec 9>>"$venv/launch.lock"
  "$1" -I -c '
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

# Prints what pyproject.toml lists under the extras that are wanted.
extra_packages() { # extra_packages INTERPRETER
  interpreter=$1
  set -- "$here/pyproject.toml"
  [ "$extra" = cpu ] || set -- "$@" "$extra"
  [ "$dev" = no ] || set -- "$@" dev
  "$interpreter" -I -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
  extras = tomllib.load(file)["project"]["optional-dependencies"]
for name in sys.argv[2:]:
  print(*extras[name], sep="\n")
' "$@"
}

make_venv() {
  find_python
  say "making .venv with $("$python" --version 2>&1)"
  # All but the lock, which another launch.sh may be waiting for.
  find "$venv/" -mindepth 1 -maxdepth 1 ! -name launch.lock \
    -exec rm -rf {} + || fail 1 "cannot empty $venv: remove it by hand"
  echo unfinished >"$stamp"
  "$python" -m venv "$venv" >&2 ||
    fail 1 "$python could not make $venv: see the error above"
}

install() {
  log=$venv/launch.log
  errors=$venv/launch.errors
  packages=$venv/launch.packages
  extra_packages "$venv/bin/python" >"$packages"
  say "installing the packages, for $extra ($reason):" \
    "minutes the first time, progress in .venv/launch.log"
  echo unfinished >"$stamp"
  # pip ends a Ctrl-C half-way and calls it an error: not one to take up from.
  trap 'exit 130' INT
  code=0
  "$venv/bin/python" -I -m pip install --no-user --no-input \
    --disable-pip-version-check -r "$here/requirements.txt" -r "$packages" \
    >"$log" 2>"$errors" || code=$?
  trap - INT
  if [ "$code" -ne 0 ]; then
    grep -v '^WARNING' "$errors" >&2 || tail -n 20 "$log" >&2
    # pip takes back what it did when it fails, but not when it is killed.
    [ "$code" -gt 128 ] || rm -f "$stamp"
    fail 1 "pip could not install the packages: see its error above"
  fi
  printf '%s %s %s\n' "$(fingerprint)" "$extra" "$dev" >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

set_up() {
  ! ready || return 0
  if sound; then lock "$venv/bin/python"; else find_python; lock "$python"; fi
  ! ready || return 0  # Another launch.sh has done it meanwhile.
  if sound; then
    # What is there stays, and moves with the rest to the new versions.
    [ -z "$have_extra" ] || ! accelerator_serves || extra=$have_extra
    [ "$have_dev" != yes ] || dev=yes
  else
    make_venv
  fi
  install
}

print_plan() {
  state=ready
  ready || state="to be set up"
  if sound; then python=$venv/bin/python; else find_python; fi
  printf 'environment  %s, %s\n' "$venv" "$state"
  printf 'python       %s (%s)\n' "$("$python" --version)" "$python"
  printf 'accelerator  %s (%s)\n' "$extra" "$reason"
  { echo requirements.txt; extra_packages "$python"; } |
    sed 's/^/install      /'
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

command=$1
shift
dev=no
case $command in
  help) usage && exit ;;
  test) dev=yes ;;
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
exec 9>&-  # The lock: nothing that runs should hold it.
if [ "$command" = setup ]; then
  say "ready"
  exit
fi

# -P: an experiments/ folder where the user stands is not this one. exec: the
# run has this process's id, and gets its signals.
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
[ "$accelerator" != cpu ] || export JAX_PLATFORMS=cpu
# Large pages for large arrays, where the C library knows how (glibc 2.35): the
# steps of a large network on a CPU spend less time on page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
if [ "$command" = test ]; then
  cd -- "$here"
  exec "$venv/bin/python" -P -m pytest "$@"
fi
exec "$venv/bin/python" -P -m "experiments.$command" "$@"
