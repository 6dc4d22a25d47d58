"""The ways to compute a gradient, each as a pure function that JAX can compile."""

import math
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace

from .cells import CELLS, IMAGE, dense
from .models import Fixed, abstract_data, input_shape, network, parameters
from .regimes import Regime

Maker = Callable[..., tuple[Callable[..., Any], tuple[Any, ...]]]
LEARNING_RATE = 1e-3
_LINE = 2**10


def _plain_loss(regime: Regime, checkpoint: bool) -> Callable[..., jax.Array]:
    cell = CELLS[regime.cell]
    shape = (regime.B, *IMAGE, regime.H) if regime.cell == "conv" else (regime.B, regime.H)

    def loss(trained, fixed, xs, ys):
        params = trained | fixed

        def step(states, xy):
            states = cell.step(params, states, xy[0])
            out = dense(params["out", "weight"], cell.output(states))
            return states, jnp.mean((out - xy[1]) ** 2)

        def segment(states, xys):
            states, losses = jax.lax.scan(step, states, xys)
            return states, losses.sum()

        start = (jnp.zeros(shape),) * cell.num_states
        if not checkpoint:
            return segment(start, (xs, ys))[1]
        length = _near_root(regime.T)
        xys = jax.tree.map(lambda v: v.reshape(-1, length, *v.shape[1:]), (xs, ys))
        return jax.lax.scan(jax.checkpoint(segment), start, xys)[1].sum()

    return loss


def _near_root(T: int) -> int:
    """The divisor of T nearest to its square root."""
    return min((n for n in range(1, T + 1) if T % n == 0), key=lambda n: abs(math.log(n * n / T)))


def bptt(regime: Regime, checkpoint: bool = False):
    """`jax.grad` through `lax.scan`."""
    model = network(regime)
    gradient = jax.grad(_plain_loss(regime, checkpoint))

    def run(trained, fixed, xs, ys):
        return gradient(trained, fixed, xs, ys), None

    return run, (parameters(model), parameters(model, Fixed))


def checkpointed_bptt(regime: Regime):
    """The same with about √T checkpoints: O(√T) memory for one more forward pass."""
    return bptt(regime, checkpoint=True)


def compiled(regime: Regime, algorithm: Any, **options: Any) -> Any:
    """A learner of the network."""
    example = jax.device_put(np.zeros(input_shape(regime), np.float32))  # that of jnp would be a program of its own
    return braintrace.compile(network(regime), algorithm, example, batch_size=regime.B, **options)


def _sequence(regime: Regime, learner: Any, **options: Any):
    def loss(x, y):
        return jnp.mean((learner(x) - y) ** 2)

    def run(xs, ys):
        return learner.etrace_grad(xs, ys, **{"step_fn": loss, "reduction": "sum", **options})

    return _pure(regime, run)


def strict(regime: Regime, **options: Any):
    """D-RTRL, position-wise credit only."""
    return _sequence(regime, compiled(regime, "d_rtrl"), **options)


def window(regime: Regime, window: int):
    """D-RTRL with full credit inside windows, of which the loss function gets one at a time."""
    K = min(window, regime.T)
    if hasattr(braintrace, "MultiStepData"):
        learner = compiled(regime, "d_rtrl", vjp_method="multi-step")

        def losses(xs, ys):
            return jnp.mean((learner(braintrace.MultiStepData(xs)) - ys) ** 2, axis=(1, 2))

        return _sequence(regime, learner, step_fn=losses, chunk_size=K)
    return _sequence(regime, compiled(regime, "d_rtrl", vjp_method="multi-step", window=K))


def windows(regime: Regime, window: int, **options: Any):
    """The same with a loss function of single steps: several windows may be folded at once."""
    K = min(window, regime.T)
    return _sequence(regime, compiled(regime, "d_rtrl", vjp_method="multi-step", window=K), **options)


def full(regime: Regime):
    """BPTT behind the interface of the learners."""
    return _sequence(regime, compiled(regime, "bptt"))


def pp_prop(regime: Regime, **options: Any):
    """Factored traces."""
    return _sequence(regime, compiled(regime, "pp_prop", decay_or_rank=0.9), **options)


def per_step(regime: Regime):
    """D-RTRL with an update of the weights at every step."""
    learner = compiled(regime, "d_rtrl")
    states = learner.param_states

    grad: Any = brainstate.transform.grad

    def step(x, y):
        grads = grad(lambda: jnp.mean((learner(x) - y) ** 2), states)()
        for path, state in states.items():
            state.value = jax.tree.map(lambda w, g: w - LEARNING_RATE * g, state.value, grads[path])

    def run(xs, ys):
        brainstate.transform.for_loop(step, xs, ys)
        return {path: state.value for path, state in states.items()}

    return _pure(regime, run)


def train(regime: Regime, trace_dtype: str | None = None):
    """The same by `etrace_train`."""
    import optax

    learner = compiled(regime, "d_rtrl", trace_dtype=trace_dtype)
    optimizer = optax.sgd(LEARNING_RATE)
    learner.init_optimizer(optimizer)

    def loss(x, y):
        return jnp.mean((learner(x) - y) ** 2)

    def run(xs, ys):
        learner.etrace_train(xs, ys, step_fn=loss, optimizer=optimizer)
        return {path: state.value for path, state in learner.param_states.items()}

    return _pure(regime, run)


def stream(regime: Regime):
    """No gradient: a loop that reads and writes an array of the size of the traces, and does nothing else."""
    traces = jax.tree.leaves(compiled(regime, "d_rtrl").etraces.value)
    size = -(-sum(leaf.size for leaf in traces) // _LINE) * _LINE  # of other sizes XLA makes slower loops

    def run(held, xs, ys):
        return {}, jax.lax.scan(lambda held, x: (0.999 * held + x[0, 0], None), held, xs)[0]

    return run, (jnp.ones(size),)


def _pure(regime: Regime, run: Callable[..., Any]):
    """States become arguments and results: nothing that a caller would use is optimised away."""
    examples = abstract_data(regime)
    function = brainstate.transform.StatefulFunction(run, return_only_write=False)
    function.make_jaxpr(*examples)
    values = [state.value for state in function.get_states(*examples)]

    def pure(values, xs, ys):
        new, out = function.jaxpr_call(values, xs, ys)
        return out, new

    return pure, (values,)


METHODS: dict[str, Maker] = {
    "bptt": bptt,
    "checkpointed_bptt": checkpointed_bptt,
    "strict": strict,
    "window": window,
    "windows": windows,
    "full": full,
    "pp_prop": pp_prop,
    "per_step": per_step,
    "train": train,
    "stream": stream,
}
