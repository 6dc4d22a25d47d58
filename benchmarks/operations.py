"""Single marked operations: overhead over plain JAX, and what each family costs in time and memory.

`python -m benchmarks.operations [--profile quick|full|smoke] [--out FILE]`
"""

import argparse
import json
import math
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import braintrace_primitives as bp
from braintrace_primitives.testing import draw

from .machine import fastest, temporary_bytes

_MIN_SECONDS = 2e-3
STATES = 2


class Profile(NamedTuple):
    """Sizes and effort.

    Attributes
    ----------
    dense : tuple of (B, I, O)
        Products whose overhead is measured.
    rounds : int
        Interleaved rounds; the median of the ratios within a round is reported.
    units, shares : int, tuple of float
        Units on both sides of a sparse product, and its shares of stored entries.
    image, channels, rank, rows : int
        Of the convolution, of LoRA and of the embedding.
    T, B : int
        Window and batch of the families.
    """

    dense: tuple[tuple[int, int, int], ...]
    rounds: int
    units: int
    shares: tuple[float, ...]
    image: int
    channels: int
    rank: int
    rows: int
    T: int
    B: int


PROFILES = {
    "smoke": Profile(((2, 3, 4),), 3, 20, (0.05, 0.5), 5, 2, 2, 10, 3, 2),
    "quick": Profile(((1, 128, 256), (16, 384, 256)), 41, 1000, (0.001, 0.01, 0.1), 16, 8, 8, 1000, 16, 16),
    "full": Profile(
        ((1, 128, 256), (16, 24, 16), (16, 384, 256), (32, 768, 512)),
        101,
        4000,
        (0.0003, 0.001, 0.003, 0.01, 0.03),
        32,
        16,
        16,
        10_000,
        32,
        16,
    ),
}


def program_text(function: Callable[..., Any], *operands: Any) -> str:
    """The optimised program of `function`, without names and source lines."""
    text = str(jax.jit(function).lower(*operands).compile().as_text())
    text = re.sub(r",? ?(metadata=\{[^}]*\}|stack_frame_id=\d+)", "", text)
    body = "\n".join(line for line in text.splitlines() if " = " in line)
    names: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda m: names.setdefault(m[0], f"%{len(names)}"), body)


def overhead(profile: Profile) -> list[dict[str, Any]]:
    """Time of jitted `matmul` over that of ``x @ w + b``, forward and as a gradient, call by call in turn."""
    found = []
    for B, I, O in profile.dense:
        operands = draw((B, I), jnp.float32), draw((I, O), jnp.float32), draw((O,), jnp.float32)
        sides = bp.matmul, lambda x, w, b: x @ w + b
        for what, functions in {"forward": sides, "gradient": tuple(map(_gradient, sides))}.items():
            texts = {program_text(f, *operands) for f in functions}
            marked, plain = (_caller(f, operands) for f in functions)
            pairs = [_in_turn(marked, plain, n % 2 == 0) for n in range(profile.rounds)]
            low, middle, high = statistics.quantiles((a / b for a, b in pairs), n=4)
            found.append(
                {
                    "size": f"B{B} I{I} O{O}",
                    "what": what,
                    "us": 1e6 * statistics.median(b for _, b in pairs),
                    "ratio": middle,
                    "quartiles": [low, high],
                    "same_program": len(texts) == 1,
                }
            )
    return found


def _in_turn(one: Callable[[], float], two: Callable[[], float], swapped: bool) -> tuple[float, float]:
    if swapped:
        second = two()
        return one(), second
    return one(), two()


def _gradient(side: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(lambda x, w, bias: jnp.sum(jnp.tanh(side(x, w, bias))), (0, 1, 2))


def _caller(function: Callable[..., Any], operands: Sequence[Any]) -> Callable[[], float]:
    """Seconds of one call, the mean over enough calls to be measurable."""
    compiled = jax.jit(function)
    repeats = 1 + int(_MIN_SECONDS / fastest(lambda: jax.block_until_ready(compiled(*operands))))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(compiled(*operands))
        return (time.perf_counter() - start) / repeats

    return run


def families(profile: Profile) -> list[dict[str, Any]]:
    """Cost of every operation in `calls`: forward, gradient of a window, update of a trace."""
    return [cost(name, profile, call, x, weights) for name, call, x, weights in calls(profile)]


def calls(profile: Profile) -> list[tuple[str, Callable[..., Any], Any, tuple[Any, ...]]]:
    """Name, operation, example input and example weights."""
    N, B, r = profile.units, profile.B, profile.rank
    found: list[tuple[str, Callable[..., Any], Any, tuple[Any, ...]]] = []
    x, w = draw((B, N), jnp.float32), draw((N, N), jnp.float32)
    found.append((f"dense {N} x {N}", bp.matmul, x, (w,)))
    for share in profile.shares:
        places = np.random.default_rng(0).choice(N * N, max(1, round(share * N * N)), replace=False)
        pattern = bp.SparsityPattern(*np.divmod(np.sort(places), N), (N, N))
        name = f"sparse {N} x {N}, nnz {pattern.nnz}"
        data = draw((pattern.nnz,), jnp.float32)
        found.append((name, lambda x, d, p=pattern: bp.sparse_matmul(x, d, sparse_mat=p), x, (data,)))
    for carry_b in (True, False):
        weights = draw((N, r), jnp.float32), draw((r, N), jnp.float32)
        call = lambda x, b, a, c=carry_b: bp.lora_matmul(x, b, a, carry_b=c)  # noqa: E731
        found.append((f"LoRA {N} x {r} x {N}, carry_b={carry_b}", call, x, weights))
    size, C = profile.image, profile.channels
    image, kernel = draw((B, size, size, C), jnp.float32), draw((3, 3, C, C), jnp.float32)
    call = lambda x, k: bp.conv(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E731
    found.append((f"conv 3 x 3, {size} x {size} x {C}", call, image, (kernel,)))
    indices = jnp.arange(B) * 7 % profile.rows
    found.append((f"embedding {profile.rows} x {r}", bp.embedding, indices, (draw((profile.rows, r), jnp.float32),)))
    return found


def cost(name: str, profile: Profile, call: Callable[..., Any], x: Any, weights: tuple[Any, ...]) -> dict[str, Any]:
    """Microseconds per step and bytes of one operation."""
    (eqn,) = (e for e in jax.make_jaxpr(call)(x, *weights).eqns if bp.is_etp_primitive(e.primitive))
    spec, params = bp.get_primitive_spec(eqn.primitive), eqn.params
    rule, y = spec.trace_rule, eqn.outvars[0].aval
    named = dict(zip(spec.trainable_invars(params), weights, strict=True))
    xs = jnp.stack([x] * profile.T)
    gs, factors = draw((profile.T, *y.shape), jnp.float32), draw((1, STATES, *y.shape), jnp.float32)
    blocks = draw((STATES, STATES, *y.shape), jnp.float32)

    def update(trace, xs, factors, blocks):
        old, new = rule.decay(trace, blocks, params), rule.accumulate(xs, factors, named, params)
        return jax.tree.map(jnp.add, old, new)

    window = jax.jit(lambda xs, gs: rule.pullback(xs, named, gs, params)).lower(xs, gs).compile()
    step = jax.jit(update, donate_argnums=0)
    held = [rule.init(jax.typeof(x), named, y, STATES, params, jnp.float32)]
    trace_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(held))

    def stepped() -> None:
        held.append(jax.block_until_ready(step(held.pop(), xs[:1], factors, blocks)))

    forward = jax.jit(call)
    return {
        "operation": name,
        "weights": sum(math.prod(w.shape) for w in weights),
        "forward_us": 1e6 * fastest(lambda: jax.block_until_ready(forward(x, *weights))),
        "window_us": 1e6 * fastest(lambda: jax.block_until_ready(window(xs, gs))) / profile.T,
        "window_bytes": temporary_bytes(window),
        "update_us": 1e6 * fastest(stepped),
        "trace_bytes": trace_bytes,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as two Markdown tables."""
    overheads = [("`matmul` over `x @ w + b`", "", "µs", "ratio", "quartiles", "same program")]
    for o in report["overhead"]:
        low, high = o["quartiles"]
        same = "yes" if o["same_program"] else "no"
        overheads.append((o["size"], o["what"], f"{o['us']:.3g}", f"{o['ratio']:.3f}", f"{low:.3f} - {high:.3f}", same))
    costs = [("operation", "weights", "forward µs", "window µs/step", "window MB", "trace update µs", "trace MB")]
    for f in report["families"]:
        micro = [f"{f[key]:.3g}" for key in ("forward_us", "window_us", "update_us")]
        mega = [f"{f[key] / 1e6:.3g}" for key in ("window_bytes", "trace_bytes")]
        costs.append((f["operation"], str(f["weights"]), micro[0], micro[1], mega[0], micro[2], mega[1]))
    about = (
        f"jax {report['jax']}, {report['device']}; window of {report['T']} steps, batch {report['B']}, S = {STATES}."
    )
    return "\n\n".join([about, *map(_table, (overheads, costs))]) + "\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *body))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run, print, write; returns the report."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__)
    options.add_argument("--profile", choices=PROFILES, default="quick")
    options.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write the report as JSON")
    chosen = options.parse_args(arguments)
    profile = PROFILES[chosen.profile]
    report = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "T": profile.T,
        "B": profile.B,
        "overhead": overhead(profile),
        "families": families(profile),
    }
    print(markdown(report))
    if chosen.out:
        chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
