"""Four particulars: what the stateful shell, sparse connections, short windows and product precision cost.

``python -m benchmarks.particulars`` prints a table of each.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace

from .models import data
from .regimes import Regime
from .sides import METHODS

ROUNDS = 15
PRECISIONS = ("default", "high", "highest")
DENSITIES = (0.01, 0.03, 0.1, 0.3)
WINDOWS = (1, 4, 16, 64)
UNITS, BATCH, STEPS = 512, 8, 128


def medians(calls: dict[str, Callable[[], Any]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Seconds of each call, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(call())
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


class Leaky(brainstate.nn.Module):
    """A leaky layer on given connections, and its mean."""

    def __init__(self, inputs: int, units: int, pattern: Any = None):
        super().__init__()
        self.units, self.pattern = units, pattern
        size = (inputs, units) if pattern is None else (pattern.nnz,)
        self.w = brainstate.ParamState(jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32))

    def init_state(self, batch_size: int, **_: Any) -> None:
        """Zero state of shape (B, units)."""
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.units)))

    def update(self, x: jax.Array) -> jax.Array:
        """One step; the state of shape (B, units)."""
        if self.pattern is None:
            y = braintrace.matmul(x, self.w.value)
        else:
            y = braintrace.sparse_matmul(x, self.w.value, sparse_mat=self.pattern)
        h: Any = 0.9 * self.h.value + jnp.tanh(y)
        self.h.value = h
        return h


def shell(rounds: int) -> list[tuple[Any, ...]]:
    """Microseconds of a call by the ways to make it, and of a step over the functional face, for a model that costs
    nothing."""
    xs, learner = jnp.ones((STEPS, 1, 2)), braintrace.compile(Leaky(2, 3), "d_rtrl", jnp.ones((1, 2)), batch_size=1)
    face = learner.functional()
    params, state = face.init()
    step = jax.jit(face.step)
    fold = jax.jit(lambda params, state, xs: face.fold(params, state, xs, loss=jnp.sum))
    changing = [*learner.hidden_states.values(), learner.etraces, learner.running_index]

    def touch(x: Any) -> Any:
        for held in (*learner.param_states.values(), *changing):
            _ = held.value
        for held in changing:
            held.value = jax.tree.map(jnp.zeros_like, held.value)
        return x

    def loss(x: Any) -> Any:
        return learner(x).sum()

    jit: Any = brainstate.transform.jit
    shelled, touched, x = jit(learner), jit(touch), xs[0]
    ways = {
        "step: functional face, `jax.jit`": (1, lambda: step(params, state, x)),
        "step: `learner(x)`": (1, lambda: learner(x)),
        "step: `brainstate.transform.jit(learner)`": (1, lambda: shelled(x)),
        "no step: the same states read and written by `brainstate.transform.jit`": (1, lambda: touched(x)),
        "sequence: functional face, `jax.jit`": (STEPS, lambda: fold(params, state, xs)),
        "sequence: `etrace_grad`": (STEPS, lambda: learner.etrace_grad(xs, step_fn=loss)),
        "sequence: `etrace_evolve`": (STEPS, lambda: learner.etrace_evolve(xs)),
    }
    found = medians({name: call for name, (_, call) in ways.items()}, rounds, 20)
    least = {steps: next(found[name] for name, (n, _) in ways.items() if n == steps) for steps in (1, STEPS)}
    return [
        (name, f"{1e6 * found[name]:.0f}", f"{1e6 * (found[name] - least[steps]) / steps:.1f}")
        for name, (steps, _) in ways.items()
    ]


def connections(rounds: int, units: int = UNITS) -> list[tuple[Any, ...]]:
    """Milliseconds of the gradient of a sequence, and bytes of the traces, by the share of connections."""
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(STEPS, BATCH, units)), jnp.float32)
    calls, rows = {}, []
    for density in (*DENSITIES, 1.0):
        pattern = None
        if density < 1:
            pattern = braintrace.SparsityPattern.from_dense(rng.random((units, units)) < density)
        learner = braintrace.compile(Leaky(units, units, pattern), "d_rtrl", xs[0], batch_size=BATCH)
        calls[density] = functools.partial(learner.etrace_grad, xs, step_fn=_mean_of(learner))
        rows.append((density, learner.param_states, sum(learner.memory_report().traces.values())))
    found = medians(calls, rounds)
    return [
        (f"{density:g}", sum(s.value.size for s in states.values()), f"{size / 1e6:.2f}", f"{1e3 * found[density]:.1f}")
        for density, states, size in rows
    ]


def _mean_of(learner: Any) -> Callable[[Any], Any]:
    return lambda x: learner(x).mean()


def windows(rounds: int, regime: Regime) -> list[tuple[Any, ...]]:
    """Time of D-RTRL over that of backpropagation through time by the steps in a window."""
    sides: dict[str, tuple[str, dict[str, int]]] = {"BPTT": ("bptt", {}), "strict": ("strict", {})}
    sides |= {f"windows of {K}": ("windows", {"window": K}) for K in WINDOWS}
    calls, values = {}, data(regime)
    for name, (method, options) in sides.items():
        function, arguments = METHODS[method](regime, **options)
        program = jax.jit(function).lower(*arguments, *values).compile()
        calls[name] = functools.partial(program, *arguments, *values)
    found = medians(calls, rounds)
    return [(name, f"{1e3 * found[name] / regime.T:.3f}", f"{found[name] / found['BPTT']:.2f}") for name in sides]


def precision(rounds: int, regime: Regime) -> list[tuple[Any, ...]]:
    """Time and gradient of strict D-RTRL by `jax.default_matmul_precision`, relative to the default."""
    calls, gradients = {}, {}
    for name in PRECISIONS:
        with jax.default_matmul_precision(name):
            function, arguments = METHODS["strict"](regime)
            values = (*arguments, *data(regime))
            program = jax.jit(function).lower(*values).compile()
        gradients[name] = _flat(program(*values)[0])
        calls[name] = lambda program=program, values=values: program(*values)
    found, base = medians(calls, rounds), gradients["default"]
    return [
        (
            name,
            f"{found[name] / found['default']:.2f}",
            f"{np.linalg.norm(gradients[name] - base) / np.linalg.norm(base):.0e}",
        )
        for name in PRECISIONS
    ]


def _flat(gradient: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [f"**{title}**", "", "| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.particulars", description=__doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = options.parse_args(arguments).rounds
    columns = ("call", "µs", "per step over the functional face, µs")
    print(table(f"The shell, sequences of {STEPS} steps", columns, shell(rounds)))
    columns = ("share of connections", "weights", "traces, MB", "ms")
    print(table(f"Connections, {UNITS} x {UNITS}, B{BATCH} T{STEPS}", columns, connections(rounds)))
    gru, lif = (Regime(cell, 16, 128, 256, 256) for cell in ("gru", "lif2"))
    columns = ("gradient", "ms/step", "over BPTT")
    for regime in (gru, lif):
        print(table(f"Short windows, {regime}", columns, windows(rounds, regime)))
    columns = ("precision", "time", "difference of the gradient")
    print(table(f"Precision of products, {gru}", columns, precision(rounds, gru)))


if __name__ == "__main__":
    main()
