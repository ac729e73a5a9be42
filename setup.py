"""Build one extension per CPU level from one source; everything else is in pyproject.toml."""

import graphlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# Each level is one compilation of the same kernels. The levels are those of the x86-64 psABI;
# elsewhere base is all there is (NEON belongs to every aarch64).
X86_LEVELS = {
    "v3": ["-march=x86-64-v3"],
    # GCC and clang use 256-bit vectors at this level unless told otherwise
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
# Nothing here lets the compiler reorder or contract arithmetic. The first two flags only say that no
# one reads errno or floating-point exceptions, without which clamps and selects do not vectorise.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-g0"]
# A loop that calls a function does not vectorise. GCC was seen to inline `cdef inline` functions or not
# by how much else the file holds, at three times the cost of a loop; this is Cython's own switch.
ALWAYS_INLINE = (
    [] if sys.platform == "win32" else [("CYTHON_INLINE", "__inline__ __attribute__((always_inline))")]
)
KERNELS = Path("stableloss", "_kernels")


def compiler_accepts(flags):
    """Whether the C compiler builds and finds its way with these flags."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("int main(void) { return 0; }\n")
        command = [*compiler, *flags, "-c", str(source), "-o", str(Path(folder, "probe.o"))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def levels():
    """Name and flags of each level that this compiler can build."""
    yield "base", []
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "darwin":
        return
    for level, flags in X86_LEVELS.items():
        if compiler_accepts(flags):
            yield level, flags
        else:
            print(f"stableloss: the compiler lacks {flags}; built without level {level}")


def kernel_files():
    """The names of the kernel files, each after those that its lines `# uses <file>: <names>` name; _math
    comes first, with what all of them cimport."""
    uses = {
        path.stem: {"_math", *re.findall(r"^# uses (\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)}
        for path in sorted(KERNELS.glob("*.pxi"))
    }
    uses["_math"].remove("_math")
    return [f"{stem}.pxi" for stem in graphlib.TopologicalSorter(uses).static_order()]


def extension(level, flags):
    """The extension `stableloss._<level>`: a stub that includes every kernel file."""
    files = kernel_files()
    stub = Path("build", "stubs", f"_{level}.pyx")
    stub.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f'include "{name}"\n' for name in files)
    if not stub.exists() or stub.read_text() != text:
        stub.write_text(text)
    return Extension(
        f"stableloss._{level}",
        [str(stub)],
        include_dirs=[numpy.get_include(), str(KERNELS)],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), *ALWAYS_INLINE],
        extra_compile_args=[*FLAGS, *flags],
        depends=[*(str(KERNELS / name) for name in files), *map(str, sorted(KERNELS.glob("*.h")))],
    )


if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            [
                # named again as a dependency, or a source distribution would carry the generated C instead
                Extension("stableloss._cpu", ["stableloss/_cpu.pyx"], depends=["stableloss/_cpu.pyx"]),
                *(extension(level, flags) for level, flags in levels()),
            ],
            build_dir="build",
            include_path=[str(KERNELS)],
            compiler_directives={
                "language_level": "3",
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "freethreading_compatible": True,
            },
        )
    )
