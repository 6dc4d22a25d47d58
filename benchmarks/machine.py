"""What the machine can do: the rates that a time is judged by."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_ELEMENTS, _SIZE = 2**24, 1024


def fastest(run: Callable[[], Any], repeats: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def temporary_bytes(program: Any) -> float:
    """Memory that a compiled program takes beside its inputs and outputs; NaN on backends that do not tell."""
    memory = program.memory_analysis()
    return float("nan") if memory is None else memory.temp_size_in_bytes


def rates() -> dict[str, float]:
    """Bytes per second of a read and write of 64 MiB in place; float32 operations per second of a matrix product."""
    scale = jax.jit(lambda v: 0.999 * v + 1.0, donate_argnums=0)
    held = [jnp.ones(_ELEMENTS)]

    def stream() -> None:
        held.append(jax.block_until_ready(scale(held.pop())))

    product = jax.jit(jnp.matmul)
    a = jnp.ones((_SIZE, _SIZE))
    return {
        "bytes_per_s": 8 * _ELEMENTS / fastest(stream),
        "flops_per_s": 2 * _SIZE**3 / fastest(lambda: product(a, a).block_until_ready()),
    }
