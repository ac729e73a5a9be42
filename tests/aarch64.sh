#!/usr/bin/env bash
# Cross-build the package for aarch64 and compare the bits of its results with bits.json under qemu.
#
#   apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static mmdebstrap
#   tests/aarch64.sh [SUITE] [MIRROR]
#
# `python3` has the package's build requirements (`pip install "setuptools>=77" "Cython>=3.1"
# "numpy>=2.0"`) and the minor version of SUITE's python3: 3.11 for bookworm, the default, 3.13 for
# trixie. The target's interpreter, headers and numpy are Debian's packages, unpacked and not installed:
# neither root nor a configured binfmt is needed. The wheel is kept in the folder WHEEL_DIR, if that is set.
set -euo pipefail
suite=${1:-bookworm}
tests=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

mmdebstrap --quiet --variant=extract --architectures=arm64 \
    --include=python3-numpy,libpython3-dev "$suite" "$root" ${2:+"$2"}

# the ordinary build, on a copy of the sources, told to build for the other machine
mkdir "$work/source" "$work/sysconfig"
cp -r "$tests/../"{setup.py,pyproject.toml,README.md,LICENSE,stableloss,.ci} "$work/source"
version=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
cp "$root/usr/lib/$version/_sysconfigdata__aarch64-linux-gnu.py" "$work/sysconfig"
(
    cd "$work/source"
    export PYTHONPATH=$work/sysconfig _PYTHON_HOST_PLATFORM=linux-aarch64
    export _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__aarch64-linux-gnu
    export CC=aarch64-linux-gnu-gcc CFLAGS=-w
    # behind the include directories that setup.py names: the numpy headers are those of the build
    export C_INCLUDE_PATH=$root/usr/include/$version:$root/usr/include
    python3 -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" .
)
python3 -m zipfile -e "$work"/wheel/*.whl "$work/site"
[ -z "${WHEEL_DIR:-}" ] || { mkdir -p "$WHEEL_DIR" && cp "$work"/wheel/*.whl "$WHEEL_DIR"; }

cd "$work/site"
run() {
    qemu-aarch64-static -L "$root" -E PYTHONPATH="$work/site" \
        -E LD_LIBRARY_PATH=/usr/lib/aarch64-linux-gnu/blas:/usr/lib/aarch64-linux-gnu/lapack \
        "$root/usr/bin/$version" "$@"
}
run -m stableloss
run "$tests/bits.py"
