#!/usr/bin/env bash
# Proves and measures the GPU kernels on a machine with an NVIDIA GPU, in one command of under 10 minutes, without a network:
#
#   tools/gpu_check.sh [--dry-run] all OUTDIR     the CUDA kernels' part of check, then bench in the time that is left
#   tools/gpu_check.sh [--dry-run] check OUTDIR   builds, runs tests/gpu on each backend and compute-sanitizer on small shapes
#   tools/gpu_check.sh [--dry-run] bench OUTDIR   builds, runs benchmarks/gpu.py: CUDA, Triton, naive, eager and torch.compile
#
# check and bench end in under 9 minutes each.
#
# Needs: nvcc 12.8 or newer, a C++17 compiler, and a python3 with a CUDA torch 2.10 or newer, setuptools 77 or newer, cmake, ninja,
# numpy; for check and all also pybind11, pytest, hypothesis and compute-sanitizer. What is missing is named before anything is built.
# Builds for this machine's GPU alone, into this checkout. OUTDIR receives logs, JSON and CSV. --dry-run prints the plan.
set -uo pipefail
root=$(cd "$(dirname "$(realpath "$0")")/.." && pwd)

usage() {
  echo "usage: tools/gpu_check.sh [--dry-run] all|check|bench OUTDIR" >&2
  exit 2
}

dry=0
[[ ${1-} == --dry-run ]] && { dry=1; shift; }
(($# == 2)) || usage
mode=$1 out=$2
[[ $mode == all || $mode == check || $mode == bench ]] ||
  { echo "gpu_check: '$mode' is none of all, check and bench" >&2; usage; }
((dry)) || mkdir -p "$out" || exit 2
((dry)) || out=$(realpath "$out")
python=${LGLD_PYTHON:-python3}
total=525 # seconds for everything; the last steps get what is left
[[ $mode == all ]] && total=570

say() { printf '%s\n' "$*" >&2; }

# --- what the machine has ---------------------------------------------------------------------------------------------

missing=()
need() { command -v "$1" >/dev/null || missing+=("$1: $2"); }
need "$python" "Python 3.10 or newer"
need c++ "a C++17 compiler"
nvcc=$(command -v "${CUDACXX:-nvcc}" || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc") || missing+=("nvcc: 12.8 or newer, on PATH or in CUDA_HOME")
need nvidia-smi "the GPU's driver"
sanitizer=$(command -v compute-sanitizer || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" || true)
[[ $mode == bench || $sanitizer ]] || missing+=("compute-sanitizer: part of the CUDA toolkit")
modules=(torch numpy setuptools cmake ninja)
[[ $mode != bench ]] && modules+=(pybind11 pytest hypothesis)
for module in "${modules[@]}"; do
  # cmake and ninja may also be plain programs.
  [[ $module == cmake || $module == ninja ]] && command -v "$module" >/dev/null && continue
  "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" 2>/dev/null ||
    missing+=("$module: carry its wheel and install it with \`$python -m pip install --no-index --no-deps WHEEL\`")
done
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d ' .')
# Without one the tests would skip themselves.
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || missing+=("a GPU that torch can use")
[[ $arch =~ ^[0-9]+$ ]] || { missing+=("a GPU: nvidia-smi names no compute capability"); arch=90; }

# --- the plan ---------------------------------------------------------------------------------------------------------

names=() limits=() commands=()
step() { names+=("$1") limits+=("$2") commands+=("$3"); }

step build 240 "LGLD_CUDA=on LGLD_CUDA_ARCHS=$arch CUDACXX=$nvcc CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) $python -m pip install --no-build-isolation --no-deps -e $root"
suite() { step "pytest-$1" "$2" "LGLD_GPU_BACKEND=$1 $python -m pytest -q -p no:cacheprovider tests/gpu"; }
# Our kernels alone are watched: torch's own would take most of the time. Without torch's memory pool every tensor is an
# allocation of its own, whose ends are then seen.
sanitize() {
  local tool seconds=$1
  shift
  for tool; do
    step "$tool" "$seconds" "LGLD_GPU_BACKEND=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 $sanitizer --tool $tool --kernel-regex kns=lgld --error-exitcode 9 $python tools/gpu_small.py"
  done
}
case $mode in
  all) suite cuda 120; sanitize 40 memcheck racecheck ;;
  # Triton compiles a kernel for every shape's constants: it has what is left.
  check) suite cuda 200; sanitize 60 memcheck racecheck initcheck synccheck; suite triton 300 ;;
esac
# Results of Triton are compared there, too.
[[ $mode == check ]] || step bench 500 "$python benchmarks/gpu.py --out $out --seconds \$left"

if ((dry)); then
  for i in "${!names[@]}"; do printf '%-15s at most %3d s: %s\n' "${names[i]}" "${limits[i]}" "${commands[i]}"; done
  ((${#missing[@]})) && printf 'missing here: %s\n' "${missing[@]}"
  exit 0
fi
if ((${#missing[@]})); then
  printf 'gpu_check: missing: %s\n' "${missing[@]}" >&2
  exit 3
fi

# --- running it -------------------------------------------------------------------------------------------------------

cd "$root" || exit 2
{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  "$nvcc" --version | tail -2
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
} >"$out/machine.txt" 2>&1
results=() seconds=() failed=0
for i in "${!names[@]}"; do
  left=$((total - SECONDS))
  limit=$((limits[i] < left ? limits[i] : left))
  start=$SECONDS
  if ((limit < 10)); then
    results+=("not run: out of time") seconds+=(0) failed=1
    continue
  fi
  say "=== ${names[i]} (at most $limit s)"
  # The benchmark prints its table last, so it is shown whole; of the others the end.
  if [[ ${names[i]} == bench ]]; then
    left=$((limit - 15)) timeout "$limit" bash -c "export left; ${commands[i]}" 2>&1 | tee "$out/bench.txt"
  else
    timeout "$limit" bash -c "${commands[i]}" >"$out/${names[i]}.txt" 2>&1
  fi
  status=$? # of the command, through tee too: pipefail
  seconds+=($((SECONDS - start)))
  case $status in
    0) results+=(ok) ;;
    124) results+=("FAILED: over its limit") failed=1 ;;
    *) grep -qs 'Device not supported' "$out/${names[i]}.txt" && status="compute-sanitizer does not support this device"
       results+=("FAILED ($status)") failed=1 ;;
  esac
  if [[ $status != 0 && ${names[i]} != bench ]]; then tail -30 "$out/${names[i]}.txt" >&2; fi
  [[ ${names[i]} == build && $status != 0 ]] && break
done

{
  printf '\n%-15s %7s  %s\n' step seconds result
  for i in "${!results[@]}"; do
    note=$(grep -hE '^=*.*[0-9]+ (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY' "$out/${names[i]}.txt" 2>/dev/null | tail -1)
    printf '%-15s %7d  %s  %s\n' "${names[i]}" "${seconds[i]}" "${results[i]}" "$note"
  done
} | tee "$out/summary.txt"
exit "$failed"
