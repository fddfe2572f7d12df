"""Builds the native kernels where there is a C compiler; without one the install is whole, and torch computes."""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("moecli/kernels/c")
FLAGS = "-std=gnu11 -O3 -g0 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math".split()
AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512".split()
X86 = {
    "avx512": ("arch/avx512.c", AVX512),
    "avxvnni": ("arch/avx2.c", [*AVX2, "-mavxvnni"]),
    "avx2": ("arch/avx2.c", AVX2),
}
ARM = {"neon": ("arch/neon.c", ["-march=armv8.2-a+dotprod"])}
SCALAR = {"scalar": ("arch/scalar.c", [])}
ISAS = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}  # best first: source and flags of each

if sys.platform == "darwin":
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")  # flags of one processor, so a library for one


class BuildKernels(build_ext):
    """One object per instruction set, and one library of those that this compiler can make."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))  # not a Python module: any version loads it

    def build_extension(self, ext: Extension) -> None:
        isas = {**ISAS.get(platform.machine(), {}), **SCALAR}
        built, objects = [], []
        for name, (source, flags) in isas.items():
            try:
                objects += self._compile(name, source, flags)
                built.append(f"ISA({name})")
            except CompileError:
                self.warn(f"this compiler makes no {name} kernels")
        objects += self._compile("native", "native.c", [f"-DMOECLI_ISAS={' '.join(built)}"])
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=["m"])

    def _compile(self, name: str, source: str, flags: list[str]) -> list[str]:
        folder = Path(self.build_temp, name)
        return self.compiler.compile([str(SOURCES / source)], str(folder), extra_postargs=[*FLAGS, *flags])


class PlatformWheel(bdist_wheel):
    """A wheel of one platform, and any Python, if the library is in it."""

    def get_tag(self) -> tuple[str, str, str]:
        library = Path(self.get_finalized_command("build_ext").get_ext_fullpath("moecli.kernels._native"))
        return "py3", "none", super().get_tag()[2] if library.exists() else "any"


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "moecli.kernels._native",
                sorted(str(path) for path in SOURCES.rglob("*.c")),
                depends=sorted(str(path) for path in SOURCES.rglob("*.h")),
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    )
