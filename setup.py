"""Build one extension per CPU level from one source; everything else is in pyproject.toml.

With STABLELOSS_LIMITED_API=1 in the environment the result is one wheel for CPython 3.12 and every later
version; calls of a few rows take a little longer than in one built for the version.
"""

import copy
import graphlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from sysconfig import get_platform

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info
from setuptools.errors import CompileError

# that of the target, where it is not the machine of the build
PLATFORM = get_platform()
# Each level is one compilation of the same kernels. The levels are those of the x86-64 psABI;
# elsewhere base is all there is (NEON belongs to every aarch64).
X86_LEVELS = {
    "v3": ["-march=x86-64-v3"],
    # GCC and clang use 256-bit vectors at this level unless told otherwise
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
# Few Macs have AVX-512. A universal build has a part for arm64, which these flags leave alone.
MACOS_LEVELS = {"v3": ["-Xarch_x86_64", "-march=x86-64-v3"]}
# Nothing here lets the compiler reorder or contract arithmetic. The first two flags only say that no
# one reads errno or floating-point exceptions, without which clamps and selects do not vectorise.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# debugging information would name the folder of the build
NO_DEBUG = ["-g0"]
# GCC's stack on Windows is aligned for 16 bytes, and its moves of longer vectors ask for more.
UNALIGNED_MOVES = ["-Wa,-muse-unaligned-vector-move"]
# A loop that calls a function does not vectorise. GCC was seen to inline `cdef inline` functions or not
# by how much else the file holds, at three times the cost of a loop; this is Cython's own switch.
ALWAYS_INLINE = ("CYTHON_INLINE", "__inline__ __attribute__((always_inline))")
# Cython 3.3 releases what it has not set yet where a constructor's keywords find no memory.
NO_VECTORCALL_NEW = ("CYTHON_VECTORCALL_TPNEW", "0")
LIMITED_API = [("Py_LIMITED_API", "0x030C0000")] if os.environ.get("STABLELOSS_LIMITED_API") == "1" else []
KERNELS = Path("stableloss", "_kernels")
# in Markdown and in HTML
RELATIVE_LINK = re.compile(
    r"""(?P<before>(?P<image>!\[[^\]]*\]\(|\bsrc(?:set)?=")|\]\(|\bhref=")(?!\w+:|\#)(?P<path>[^\s")]+)"""
)


def levels():
    """Name and flags of each level that the target may have."""
    yield "base", []
    if PLATFORM.startswith("macosx"):
        if PLATFORM.endswith(("x86_64", "universal2")):
            yield from MACOS_LEVELS.items()
    elif "x86_64" in PLATFORM or "amd64" in PLATFORM:
        yield from X86_LEVELS.items()


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
        define_macros=[
            ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
            ALWAYS_INLINE,
            NO_VECTORCALL_NEW,
            *LIMITED_API,
        ],
        extra_compile_args=[*FLAGS, *NO_DEBUG, *flags],
        depends=[*(str(KERNELS / name) for name in files), *map(str, sorted(KERNELS.glob("*.h")))],
        py_limited_api=bool(LIMITED_API),
    )


class BuildExtensions(build_ext):
    """Drops the levels whose flags the compiler does not know, and sees to what differs on Windows."""

    def finalize_options(self):
        super().finalize_options()
        # setuptools would take MSVC whatever CC says
        if os.name == "nt" and self.compiler is None and "gcc" in Path(os.environ.get("CC", "")).name:
            self.compiler = "mingw32"

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.use_clang_cl()
        elif PLATFORM.startswith(("win", "mingw")):
            more = UNALIGNED_MOVES if self.accepts(UNALIGNED_MOVES) else []
            for extension in self.extensions:
                extension.extra_compile_args += more
                # an installation of Python has no libgcc beside it
                extension.extra_link_args = ["-static-libgcc"]
        for extension in list(self.extensions):
            if not self.accepts(extension.extra_compile_args):
                self.extensions.remove(extension)
                print(f"stableloss: the compiler lacks a flag of {extension.name}, which is left out")
        self.translate()
        super().build_extensions()

    def translate(self):
        """Cython's part: as late as this, a source distribution does without it."""
        translated = cythonize(
            copy.deepcopy(self.extensions),
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
        for extension, with_c in zip(self.extensions, translated, strict=True):
            extension.sources = with_c.sources

    def use_clang_cl(self):
        """MSVC has no vector types."""
        name = os.environ.get("CC", "clang-cl")
        path = shutil.which(name)
        if path is None or not Path(path).stem.startswith("clang-cl"):
            raise SystemExit(
                f"stableloss: the C compiler {name!r} is not clang-cl, or not found. MSVC itself lacks the "
                "vector types of the kernels: install LLVM, or Visual Studio's C++ Clang tools, and set "
                "CC=clang-cl; or set CC=gcc for MinGW; or install a wheel."
            )
        if not self.compiler.initialized:
            self.compiler.initialize()
        self.compiler.cc = path
        for extension in self.extensions:
            flags = extension.extra_compile_args
            extension.extra_compile_args = [f"/clang:{flag}" for flag in flags if flag not in NO_DEBUG]
            # no time stamp
            extension.extra_link_args = ["/Brepro"]

    def accepts(self, flags):
        """Whether the compiler builds with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("int probe;\n", encoding="utf-8")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True


class EggInfo(egg_info):
    """Makes the README's links absolute: a package index has nothing that they are relative to."""

    def run(self):
        metadata = self.distribution.metadata
        source = metadata.project_urls["Source"]

        def absolute(match):
            kind = "raw" if match["image"] else "blob"
            return f"{match['before']}{source}/{kind}/v{metadata.version}/{match['path']}"

        metadata.long_description = RELATIVE_LINK.sub(absolute, metadata.long_description)
        super().run()


if __name__ == "__main__":
    setup(
        cmdclass={"build_ext": BuildExtensions, "egg_info": EggInfo},
        ext_modules=[
            Extension(
                "stableloss._cpu",
                ["stableloss/_cpu.pyx"],
                define_macros=LIMITED_API,
                extra_compile_args=NO_DEBUG,
                py_limited_api=bool(LIMITED_API),
            ),
            *(extension(level, flags) for level, flags in levels()),
        ],
        # in a folder of its own, or the other build's extensions would be packed too
        options={"bdist_wheel": {"py_limited_api": "cp312"}, "build": {"build_base": "build/abi3"}}
        if LIMITED_API
        else {},
    )
