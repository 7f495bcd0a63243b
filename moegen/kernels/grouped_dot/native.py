"""Grouped products by a custom call in C++ (`native.cc`), compiled on the machine that runs it.

XLA on CPU copies the slice of weights that a product in a loop reads, and a gradient into its
place; this reads and writes them where they are.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from jaxlib import version

SOURCES = tuple(Path(__file__).with_name(n) for n in ("native.cc", "native_panels.h"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-w")
NOTE = (
    "moegen: compiling native.cc for this processor, once, in about 5 s; "
    "MOEGEN_NATIVE=off does without"
)
TARGETS = ("moegen_grouped_dot", "moegen_grouped_outer")


@functools.cache
def obstacle() -> str:
    """Why the custom call cannot be had here; empty if it can: it is compiled and registered."""
    try:
        library = ctypes.CDLL(str(compiled()))
    except subprocess.CalledProcessError as error:
        wrong = [line for line in error.stderr.splitlines() if "error" in line] or [
            "no reason given"
        ]
        return f"native.cc does not compile here: {wrong[0]}"
    except OSError as error:
        return f"it needs a C++ compiler (GCC 12 or later, CXX names it): {error}"
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return ""


def compiled() -> Path:
    """The library: from the user's cache folder, or compiled into it.

    Raises:
      OSError: without a compiler or a folder to write to.
      subprocess.CalledProcessError: if the compiler refuses it.
    """
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS, f"-I{jax.ffi.include_dir()}"]
    texts = [source.read_text() for source in SOURCES]
    key = "\n".join([*texts, version.__version__, *command, processor()])
    name = f"grouped-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moegen" / name
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        print(NOTE, file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            made = Path(folder) / name
            whole = [*command, str(SOURCES[0]), "-o", str(made)]
            subprocess.run(whole, check=True, capture_output=True, text=True)
            made.replace(cache)
    return cache


def processor() -> str:
    """What the machine's processor can do: a folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def grouped_dot_native(
    rows: jax.Array, weights: jax.Array, sizes: jax.Array, *, transposed: bool = False
) -> jax.Array:
    """Rows [N, D] times the weights [E, D, F] of their expert, [E, F, D] if transposed: [N, F].

    0 for rows that no expert has. f32 and bf16, accumulated in float32.
    """
    check()
    shape = (rows.shape[0], weights.shape[1 if transposed else 2])
    made = jax.ShapeDtypeStruct(shape, rows.dtype)
    call = jax.ffi.ffi_call(TARGETS[0], made, vmap_method="sequential")
    out: jax.Array = call(rows, weights, sizes, transposed=transposed)
    return out


def grouped_outer_native(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    """Per expert, the sum over its rows of products of a[N, D] and b[N, F]: [E, D, F]."""
    check()
    made = jax.ShapeDtypeStruct((sizes.shape[0], a.shape[1], b.shape[1]), a.dtype)
    out: jax.Array = jax.ffi.ffi_call(TARGETS[1], made, vmap_method="sequential")(a, b, sizes)
    return out


def check() -> None:
    """Raises RuntimeError with the reason if the custom call cannot be had here."""
    if reason := obstacle():
        raise RuntimeError(f'grouped products by kernel "native": {reason}')
