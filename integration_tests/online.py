"""The models of `oracle_cases` as brainstate modules, and their gradients by a braintrace learner."""

import contextlib
from collections.abc import Iterator
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from oracles import Case, Data, View, cast, relative_error

import braintrace

MARKED = View(matmul=braintrace.matmul, element_wise=braintrace.element_wise)


class StepModule(brainstate.nn.Module):
    """A case whose parameters and hidden states are attributes of one module."""

    def __init__(self, case: Case, dtype: Any):
        super().__init__()
        self._case, self._dtype = case, dtype
        for name, value in cast(case.params, dtype).items():
            setattr(self, name, brainstate.ParamState(value))

    def init_state(self, batch_size: int | None = None) -> None:
        batch = () if batch_size is None else (batch_size,)
        for name, value in self._case.initial(batch, self._dtype).items():
            setattr(self, name, brainstate.HiddenState(value))

    def update(self, x: Any) -> Any:
        params = {name: getattr(self, name).value for name in self._case.params}
        hidden = {name: getattr(self, name).value for name in self._case.states}
        hidden, out = self._case.step(MARKED, params, hidden, x)
        for name, value in hidden.items():
            getattr(self, name).value = value
        return out


def dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def learn(case: Case, data: Data, algorithm: str = "d_rtrl", *, model: Any = None, **options: Any) -> Any:
    """A learner of the case, or of `model` if it is given, at rest."""
    model = StepModule(case, data.xs.dtype) if model is None else model
    batch = data.batch[0] if data.batch else None
    return braintrace.compile(model, algorithm, data.xs[0], batch_size=batch, **options)


def loss_of_step(case: Case, learner: Any) -> Any:
    """The case's loss as a function of input and target, by one call of the learner."""

    def step(x: jax.Array, y: jax.Array) -> jax.Array:
        out = learner(x)
        return case.loss(out, {dotted(p): s.value for p, s in learner.hidden_states.items()}, y)

    return step


def sequence_gradient(case: Case, learner: Any, data: Data, **options: Any) -> dict[str, Any]:
    """Gradient of the summed loss by `etrace_grad`, from rest."""
    learner.reset_state()
    grads = learner.etrace_grad(data.xs, data.ys, step_fn=loss_of_step(case, learner), reduction="sum", **options)
    return {dotted(path): value for path, value in grads.items()}


def stepwise_gradient(case: Case, learner: Any, data: Data) -> dict[str, Any]:
    """The same by one `brainstate.transform.grad` per time step."""
    learner.reset_state()
    gradient = brainstate.transform.grad(loss_of_step(case, learner), learner.param_states)
    total = None
    step = brainstate.transform.jit(lambda x, y: gradient(x, y))
    for x, y in zip(data.xs, data.ys, strict=True):
        grads = step(x, y)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return {dotted(path): value for path, value in total.items()}


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Run in double precision, or in single."""
    with jax.enable_x64(name == "float64"), brainstate.environ.context(precision=int(name[-2:])):
        yield


TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every gradient equals the expected one, up to the rounding of its own precision."""
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    tolerance = TOLERANCE[str(jax.tree.leaves(expected)[0].dtype)]
    assert max(errors.values()) < tolerance, {name: f"{error:.1e}" for name, error in errors.items()}
