"""How close an online gradient is to the exact one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_compiler import Table

from ._checks import check_choice, check_environment, check_state_shapes, check_steps
from ._driver import GradientDriver
from ._errors import LearnerTypeError
from ._fold_length import FoldLength
from ._plan import Plan, make_plan
from ._sequence import SequenceDrivers, check_mask, sequence_length
from .carries import Carry, InfluenceCarry, TraceCarry

StepFunction = Callable[..., Any]


class Agreement(NamedTuple):
    """Two gradients g and r of one parameter, compared.

    Attributes
    ----------
    path : tuple
    relative_error : float
        ‖g - r‖ / ‖r‖.
    cosine : float
        Re⟨g, r⟩ / (‖g‖ ‖r‖); NaN where one of them is zero.
    certificate : str
        What a strict gradient leaves out for this parameter, by the structure of the model. Empty where the learner's
        gradient is another than the strict one of `D_RTRL`.
    """

    path: tuple[Any, ...]
    relative_error: float
    cosine: float
    certificate: str


class GradientComparison(NamedTuple):
    """A table of agreements; prints as text, and as a table in a notebook.

    Attributes
    ----------
    parameters : tuple of Agreement
        One for each parameter; ``comparison[path]`` finds one.
    total : Agreement
        Over all parameters.
    against : str
        The reference.
    """

    parameters: tuple[Agreement, ...]
    total: Agreement
    against: str

    def __getitem__(self, path: Any) -> Any:
        path = (path,) if isinstance(path, str) else path
        found = [row for row in self.parameters if row.path == path]
        if not found:
            raise KeyError(f"{path}: known are {[row.path for row in self.parameters]}")
        return found[0]

    @property
    def table(self) -> Table:
        """The table to show."""
        header = ("parameter", f"error to {self.against}", "cosine", "strict gradient leaves out")
        rows = [
            (".".join(map(str, r.path)), f"{r.relative_error:.2e}", f"{r.cosine:.6f}", r.certificate)
            for r in (*self.parameters, self.total)
        ]
        shown = None if any(r.certificate for r in self.parameters) else -1
        return Table(header[:shown], [row[:shown] for row in rows])

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def compare_gradients(
    learner: Any, *sequences: Any, step_fn: StepFunction, against: str = "bptt", mask: Any = None
) -> GradientComparison:
    """Compare a learner's gradient with that of an exact method on the same sequence.

    Both start at the present hidden states, with no past: traces are taken as zero. States, traces and random keys of
    the learner stay as they are.

    Parameters
    ----------
    learner : OnlineLearner
    *sequences : pytrees
        Leaves of shape (T, ...), sliced together.
    step_fn : callable
        As in `etrace_grad`; it calls `learner`, and the reference runs through that very call.
    against : {"bptt", "rtrl"}
        Backpropagation through time needs memory for T steps; real-time recurrent learning holds the influence of all
        parameters on all states instead, whatever T. Both are exact.
    mask : array of shape (T,), optional
        Weight of each step's loss.

    Returns
    -------
    GradientComparison

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_algos import compile
    >>> from braintrace_primitives import matmul
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
    ...         return self.h.value
    >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros(2))
    >>> comparison = compare_gradients(learner, jnp.ones((4, 2)), step_fn=lambda x: (learner(x) ** 2).sum())
    >>> comparison["w"].certificate, comparison.total.relative_error < 1e-5
    ('nothing', True)
    """
    check_choice("against", against, ("bptt", "rtrl"))
    if not isinstance(learner, SequenceDrivers):
        raise LearnerTypeError(
            "Gradients are compared for one learner at a time.",
            where="compare_gradients(learner, ...)",
            found=type(learner).__name__,
            expected="a learner, as compile gives it",
            fix="call compare_gradients for each learner, with a step_fn that calls it",
        )
    check_environment(learner.plan)
    check_state_shapes(learner.plan)
    sequences = jax.tree.map(jnp.asarray, sequences)
    T = sequence_length(sequences)
    scales = check_mask(mask, T)
    as_it_is = _Method(learner.plan, learner._fold_length(None, T))
    own = _gradient(learner, as_it_is, sequences, scales, step_fn, "own")
    reference = _gradient(learner, _exact(learner, against, T), sequences, scales, step_fn, against)
    rows = [
        Agreement(path, *_agreement(own[path], reference[path]), _omissions(learner, path))
        for path in learner.param_states
    ]
    total = Agreement(("all",), *_agreement(list(own.values()), list(reference.values())), "")
    return GradientComparison(tuple(rows), total, against)


class GradientQuality:
    """A live measure of a learner's gradient, to call once for each training sequence; see `gradient_quality`.

    Attributes
    ----------
    history : list of (int, float)
        Number of the call, and the cosine measured then.
    """

    def __init__(self, learner: Any, step_fn: StepFunction, every: int, steps: int | None, against: str):
        self.learner, self.step_fn, self.every, self.steps, self.against = learner, step_fn, every, steps, against
        self.calls = 0
        self.history: list[tuple[int, float]] = []

    def __call__(self, *sequences: Any) -> float | None:
        """Measure on these sequences if it is time to; returns the last measured cosine."""
        due = self.calls % self.every == 0
        self.calls += 1
        if due:
            first = jax.tree.map(lambda v: v[: self.steps], sequences)
            comparison = compare_gradients(self.learner, *first, step_fn=self.step_fn, against=self.against)
            self.history.append((self.calls - 1, comparison.total.cosine))
        return self.history[-1][1] if self.history else None


class Comparison(SequenceDrivers):
    """The method of a learner that watches its gradient."""

    def gradient_quality(
        self, step_fn: StepFunction, *, every: int = 1, steps: int | None = None, against: str = "bptt"
    ) -> GradientQuality:
        """A training metric: the cosine between this learner's gradient and the exact one, on part of a sequence.

        Parameters
        ----------
        step_fn : callable
            As in `etrace_grad`.
        every : int
            Measure on every so many calls.
        steps : int, optional
            Measure on so many first steps of a sequence; on all of them by default.
        against : {"bptt", "rtrl"}
            The reference.

        Returns
        -------
        GradientQuality
            To be called with the sequences of each training iteration, outside of compiled code.

        Examples
        --------
        A training loop that measures at every tenth sequence, on 32 steps::

            quality = learner.gradient_quality(step, every=10, steps=32)
            for xs, ys in batches:
                learner.reset_state()
                print(quality(xs, ys))
                learner.etrace_train(xs, ys, step_fn=step, optimizer=optimizer)
        """
        check_steps("every", every)
        if steps is not None:
            check_steps("steps", steps)
        check_choice("against", against, ("bptt", "rtrl"))
        return GradientQuality(self, step_fn, every, steps, against)


class _Method(NamedTuple):
    """How a gradient is computed: by which plan, and how many steps at once."""

    plan: Plan
    length: FoldLength


def _exact(learner: Any, against: str, T: int) -> _Method:
    """Backpropagation through time, or real-time recurrent learning, of the learner's graph."""
    carry, K = (Carry(), T) if against == "bptt" else (InfluenceCarry(), 1)
    plan = make_plan(learner.graph, strict=False, batch=learner.plan.batch, carry=carry)
    return _Method(plan, FoldLength(K, "", K))


def _gradient(
    learner: Any, method: _Method, sequences: Any, scales: Any, step_fn: StepFunction, name: str
) -> dict[Any, Any]:
    """The gradient of `learner`'s parameters by `method`, from the present states."""

    def make():
        return GradientDriver(learner, step_fn, False, method.length, sequences, None, method.plan)

    driver = learner._cached(make, step_fn, sequences, None, "compare", name)
    return driver.run(*driver.step.read(), _no_past(learner, driver.plan), sequences, scales)[0]


def _no_past(learner: Any, plan: Plan) -> Any:
    """Traces where a sequence begins; random keys that are drawn from for them stay as they are."""
    before = [(state, state.value) for state in learner.states().values()]
    traces = plan.carry.begin(plan, learner.trace_dtype if plan is learner.plan else None)
    for state, value in before:
        state.value = value
    return traces


def _agreement(g: Any, r: Any) -> tuple[float, float]:
    g, r = (jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (g, r))
    norms = jnp.linalg.norm(g), jnp.linalg.norm(r)
    error = jnp.where(jnp.any(g != r), jnp.linalg.norm(g - r) / norms[1], 0)
    return float(error), float(jnp.vdot(r, g).real / (norms[0] * norms[1]))


def _omissions(learner: Any, path: Any) -> str:
    plan = learner.plan
    if not (learner.vjp_method == "single-step" and plan.signal == "past" and type(plan.carry) is TraceCarry):
        return ""
    certificates = [c for c in plan.certificates() if path in c.operation.parameter_paths]
    if not certificates:
        return "all credit beyond its own step"
    return ", ".join(_unique(o.value for c in certificates for o in c.omissions)) or "nothing"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
