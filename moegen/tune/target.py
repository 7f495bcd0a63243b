"""Targets: what a kind of device can do per second, and how much it holds."""

from __future__ import annotations

from dataclasses import dataclass

from moegen.errors import ScheduleError, did_you_mean

MIB, GIB = 1024**2, 1024**3
GPU_SHARED = {"a100": 163 * 1024, "h100": 227 * 1024, "h200": 227 * 1024, "b200": 227 * 1024}
"""Shared memory of a block: compute capability 8.0; 9.0 and 10.0 (CUDA C++ programming guide)."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of device, as JAX counts devices.

    Attributes:
      name: as in Schedule(target=...).
      platform: JAX's platform name.
      flops: floating point operations per second in matrix products, f32 on CPU, bf16 else.
      bytes: memory bytes per second.
      overhead: seconds to start one op.
      row_block: rows that share a weight matrix in the sorted format.
      rates: the same for other dtypes, (dtype, operations per second) pairs. For f32 at
        JAX's default precision, which is bf16 passes on TPU and TF32 on GPU.
      cores: TensorCores, multiprocessors or CPU cores that share the work.
      on_chip: bytes a kernel can hold: VMEM of a core, shared memory of a block.
      memory: bytes of HBM; 0 where it is not known.
      source: where the figures come from.
    """

    name: str
    platform: str
    flops: float
    bytes: float
    overhead: float
    row_block: int
    rates: tuple[tuple[str, float], ...] = ()
    cores: int = 1
    on_chip: int = 0
    memory: int = 0
    source: str = ""

    def rate(self, dtype: str) -> float:
        """Operations per second in matrix products of this dtype; `flops` if it is not listed."""
        return dict(self.rates).get(dtype, self.flops)


def _tpu(
    name: str, bf16: float, i8: float, bandwidth: float, vmem: int, cores: int, hbm: int, page: str
) -> Target:
    rates = (("bf16", bf16), ("f32", bf16), ("i8", i8))
    chip = f"cloud.google.com/tpu/docs/{page}; VMEM: jax pallas mosaic tpu_info"
    held = (vmem * MIB, hbm * GIB)
    return Target(name, "tpu", bf16, bandwidth, 2e-6, 1, rates, cores, *held, chip)


def _gpu(
    name: str, bf16: float, tf32: float, bandwidth: float, sms: int, hbm: int, sheet: str
) -> Target:
    rates = (("bf16", bf16), ("f32", tf32), ("i8", 2 * bf16))
    held = (GPU_SHARED[name], hbm * 10**9)
    return Target(name, "gpu", bf16, bandwidth, 3e-6, 1, rates, sms, *held, sheet)


TARGETS = {
    t.name: t
    for t in (
        Target(
            "cpu",
            "cpu",
            2.0e11,
            2.5e10,
            5e-6,
            32,
            (("f32", 2.0e11), ("bf16", 4.0e11)),
            2,
            source="order of two Zen 4 cores",
        ),
        _tpu("tpu_v4", 2.75e14, 2.75e14, 1.228e12, 16, 2, 32, "v4"),
        _tpu("tpu_v5e", 1.97e14, 3.94e14, 8.19e11, 128, 1, 16, "v5e"),
        _tpu("tpu_v5p", 4.59e14, 9.18e14, 2.765e12, 64, 2, 95, "v5p"),
        _tpu("tpu_v6e", 9.18e14, 1.836e15, 1.64e12, 128, 1, 32, "v6e"),
        # JAX sees each of the chip's two cores as a device: half of 2307 TFLOP/s and 7.38 TB/s.
        _tpu("tpu7x", 1.1535e15, 2.307e15, 3.69e12, 64, 1, 96, "tpu7x"),
        _gpu("a100", 3.12e14, 1.56e14, 2.039e12, 108, 80, "NVIDIA A100 SXM data sheet, dense"),
        _gpu("h100", 9.89e14, 4.945e14, 3.35e12, 132, 80, "NVIDIA H100 SXM data sheet, dense"),
        _gpu("h200", 9.89e14, 4.945e14, 4.8e12, 132, 141, "NVIDIA H200 SXM data sheet, dense"),
        _gpu("b200", 2.25e15, 1.125e15, 8.0e12, 148, 180, "NVIDIA DGX B200 data sheet, dense"),
    )
}
"""Published peak rates; the CPU's is the order of two server cores."""
DEFAULT = {"cpu": "cpu", "tpu": "tpu_v5e", "gpu": "h100", "cuda": "h100", "rocm": "h100"}
"""The target assumed for a JAX platform when none is named."""
KINDS = {
    "TPU v4": "tpu_v4",
    "TPU v5 lite": "tpu_v5e",
    "TPU v5": "tpu_v5p",
    "TPU v5p": "tpu_v5p",
    "TPU v6 lite": "tpu_v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
"""What `device_kind` of a JAX device starts with; the longest that fits names the target."""


def target_named(name: str) -> Target:
    """Returns the target of that name, or of that JAX platform."""
    name = DEFAULT.get(name, name)
    if name not in TARGETS:
        raise ScheduleError(
            f'target "{name}" is unknown{did_you_mean(name, TARGETS)}',
            fix=f"use one of {', '.join(TARGETS)}",
        )
    return TARGETS[name]


def target_of(platform: str, kind: str) -> Target:
    """Returns the target of a JAX device: by its kind, else the one assumed for its platform."""
    fits = [k for k in KINDS if kind.startswith(k)]
    return TARGETS[KINDS[max(fits, key=len)]] if fits else target_named(platform)
