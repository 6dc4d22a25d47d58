"""``python -m braintrace doctor``: what is installed, where it runs, and one gradient checked."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace_algos
import braintrace_compiler
import braintrace_nn
import braintrace_primitives
from braintrace_algos import D_RTRL, compile
from braintrace_primitives import matmul

from ._version import __version__

SIBLINGS = (braintrace_primitives, braintrace_compiler, braintrace_nn, braintrace_algos)
OTHERS = (
    "jax",
    "jaxlib",
    "brainstate",
    "numpy",
    "matplotlib",
    "optax",
    "rich",
    "scikit-learn",
)
TOLERANCE = 1e-5


class LeakyUnits(brainstate.nn.Module):
    """h ← 0.9 h + tanh(x W): no recurrent weights, so the online gradient is the whole gradient."""

    def __init__(self, weight: np.ndarray):
        super().__init__()
        self.weight = brainstate.ParamState(jnp.asarray(weight))

    def init_state(self, batch_size: int | None = None) -> None:
        """Units ``(out,)`` at rest."""
        self.h = brainstate.HiddenState(jnp.zeros(self.weight.value.shape[1]))

    def update(self, x: jax.Array) -> Any:
        """The units ``(out,)`` after one input ``(in,)``."""
        self.h.value = 0.9 * self.h.value + jnp.tanh(matmul(x, self.weight.value))
        return self.h.value


def gradient_error(steps: int = 12, inputs: int = 3, units: int = 4) -> float:
    """Relative error of an online gradient against plain JAX differentiating through the whole sequence.

    Examples
    --------
    >>> gradient_error() < 1e-5
    True
    """
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.normal(size=(steps, inputs)), jnp.float32)
    targets = jnp.asarray(random.normal(size=(steps, units)), jnp.float32)
    weight = random.normal(size=(inputs, units)).astype(np.float32)

    learner = compile(LeakyUnits(weight), D_RTRL, xs[0])
    online = learner.etrace_grad(
        xs, targets, step_fn=lambda x, target: ((learner(x) - target) ** 2).mean(), reduction="mean"
    )

    def loss(weight: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = 0.9 * h + jnp.tanh(x @ weight)
            return h, h

        _, outputs = jax.lax.scan(step, jnp.zeros(units), xs)
        return ((outputs - targets) ** 2).mean()

    whole = jax.grad(loss)(jnp.asarray(weight))
    return float(jnp.linalg.norm(online["weight",] - whole) / jnp.linalg.norm(whole))


SUMS = """
import jax, jax.numpy as jnp
a, b = jnp.ones((5, 7, 2, 2, 3, 8, 8)), jnp.ones((2, 2, 3, 8, 8))
raise SystemExit(not (jax.jit(lambda a, b: (a * b).sum(2))(a, b) == 2).all())
"""
FAULTY_SUMS = (
    "WRONG (github.com/jax-ml/jax/issues/39257): traces keep clear of them, sums of your own over many axes may not; "
    "install jaxlib 0.12, or export XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="
)


def sums_are_right(program: str = SUMS) -> bool:
    """Whether XLA sums products of many axes rightly on CPU, found out in a process of its own, for it may crash.

    Examples
    --------
    >>> sums_are_right("raise SystemExit(0)"), sums_are_right("import os; os.abort()")
    (True, False)
    """
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, check=False
    )
    return run.returncode == 0


def examine() -> tuple[str, bool]:
    """Gather what a bug report needs.

    Returns
    -------
    str
        The report.
    bool
        Whether the gradient came out right.
    """
    error = gradient_error()
    healthy = error < TOLERANCE
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "braintrace": __version__,
        **{package.__name__: package.__version__ for package in SIBLINGS},
        **{name: _installed(name) for name in OTHERS},
        "backend": jax.default_backend(),
        "devices": ", ".join(map(str, jax.devices())),
        "online gradient": f"{'right' if healthy else 'WRONG'} (relative error {error:.1e} against BPTT)",
        "sums on CPU": "right" if sums_are_right() else FAULTY_SUMS,
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()), healthy


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
