#!/usr/bin/env bash
# Everything that is tested on a GPU, in one command, offline, within ten minutes: builds native/ for this machine, runs
# its device tests on the driver and on the stand-in, then the tests in this folder. Results and logs go to ${OUT:-out}.
# Needs g++, cmake, ninja, a python3 with torch, cuda-bindings, nvidia-ml-py and pytest, and wheels in .wheels/ of what else
# `make setup OFFLINE=1` asks for (CONTRIBUTING.md). Exits 1 if any part fails.
set -uo pipefail
cd "$(dirname "$0")/../.."
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "SKIPPED: nvidia-smi shows no GPU on this machine, so nothing was tested on one"
  exit 0
fi
export OUT=${OUT:-$PWD/out}
export VRAMBROKER_GPU_REQUIRED=1
PYTHON=${PYTHON:-python3}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mkdir -p "$OUT"
rm -f "$OUT/frames_figures.jsonl"
failed=()

part() { # NAME SECONDS COMMAND...: run one part with a deadline, its output in a log and here
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local status=$?
  echo "== $name: status $status, $((SECONDS - begin)) s"
  [ "$status" -eq 0 ] || failed+=("$name")
}

versions() {
  uname -rm
  nvidia-smi --query-gpu=name,uuid,driver_version,memory.total,memory.used --format=csv || return 1
  cmake --version | head -1
  g++ --version | head -1
  command -v nvcc >/dev/null && nvcc --version | tail -2
  "$PYTHON" - <<'PY'
import importlib.metadata as metadata
import sys

print("python", sys.version.split()[0], sys.executable)
for name in ("torch", "cuda-bindings", "nvidia-ml-py", "pytest", "pytest-timeout", "grpcio", "protobuf"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
PY
}

build_native() {
  cmake -S native -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo && cmake --build "$build"
}

native_tests() {
  local status=0
  for test in "device_contract cuda" "cuda_device_test" "device_contract host"; do
    echo "-- $test"
    # shellcheck disable=SC2086  (a name and its argument)
    timeout 60 "$build"/tests/device/$test || status=1
  done
  echo "-- on the stand-in"
  (cd "$build" && ctest -R 'fake|abi' --output-on-failure) || status=1
  return "$status"
}

python_tests() { # warnings of the machine's own packages are shown, and are no failures
  PYTHONUNBUFFERED=1 .venv/bin/python -m pytest -p no:cacheprovider -W default -m gpu -v -s -rs tests/gpu
}

sanitized() { # what the driver is asked for is watched for misuse; calls that are meant to fail are not reported
  compute-sanitizer --report-api-errors no "$build"/tests/device/device_contract cuda
}

export -f versions build_native native_tests python_tests sanitized
export build PYTHON
part versions 30 bash -c versions
part build 180 bash -c build_native
part native 100 bash -c native_tests
part setup 180 make setup OFFLINE=1
part python 480 bash -c python_tests
if command -v compute-sanitizer >/dev/null; then
  part sanitizer 45 bash -c sanitized
else
  echo "SKIPPED: there is no compute-sanitizer here, so the driver's calls were not watched"
fi
[ -f "$OUT/frames_figures.jsonl" ] && cat "$OUT/frames_figures.jsonl"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "FAILED: ${failed[*]}" | tee "$OUT/summary.txt"
  exit 1
fi
echo "ALL PASSED in $SECONDS s" | tee "$OUT/summary.txt"
