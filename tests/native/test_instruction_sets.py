"""Each instruction set's kernels give the portable ones' results, to the bit: here, or in an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from regraft.native import _core

REPOSITORY = Path(__file__).parents[2]
X86 = platform.machine() in ("x86_64", "AMD64")

pytestmark = pytest.mark.slow


def need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program} (apt-get install {package})")


def build(directory: Path, *options: str) -> str:
    """Compile the comparing program; returns its path."""
    need("cmake", "cmake")
    options = ("-DREGRAFT_TEST_KERNELS=ON", *options)
    subprocess.run(["cmake", "-S", REPOSITORY, "-B", directory, *options], check=True)
    subprocess.run(["cmake", "--build", directory, "--parallel", "2"], check=True)
    return str(directory / "compare_kernels")


def compared(*command: str) -> list[str]:
    """Run it; names of the sets that are equal to the portable one throughout."""
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE)
    assert result.returncode == 0, result.stdout
    return [line.split(":")[0] for line in result.stdout.splitlines()]


def test_what_runs_here(tmp_path: Path) -> None:
    assert [*compared(build(tmp_path)), "portable"] == _core.kernels()


@pytest.mark.skipif(not X86, reason="VNNI's products are emulated on x86-64 only")
def test_vnni_emulated(tmp_path: Path) -> None:
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("needs SIMDe (apt-get install libsimde-dev)")
    program = build(tmp_path, "-DREGRAFT_EMULATE_VNNI=ON")
    assert compared(program, "avx512", "avxvnni") == ["avx512", "avxvnni"]


def test_neon_emulated(tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    need("qemu-aarch64", "qemu-user")
    program = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    assert compared("qemu-aarch64", "-cpu", "max", program) == ["neon-dotprod", "neon"]
    assert compared("qemu-aarch64", "-cpu", "cortex-a53", program) == ["neon"]  # which has no dot products
