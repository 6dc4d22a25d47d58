"""Random step programs: strict gradients against explicit Jacobians, and the certificate held to both directions."""

import contextlib
import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from program_strategies import I, programs
from programs import CHAINS, Program, gradients

import braintrace
from braintrace_compiler._perturbation import goes_around

T = 3
TOLERANCE = 1e-9
FUNCTIONS = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "keep": lambda v: 1 - jax.nn.sigmoid(v),
    "flip": lambda v: v[..., ::-1],
    "centre": lambda v: v - v.mean(-1, keepdims=True),
}


class GeneratedModel(brainstate.nn.Module):
    """A program run through marked operations."""

    def __init__(self, program: Program, params: dict[str, np.ndarray]):
        super().__init__()
        self.program = program
        for name, value in params.items():
            setattr(self, name, brainstate.ParamState(jnp.asarray(value)))

    def init_state(self, batch_size: int | None = None) -> None:
        for k, size in enumerate(self.program.states):
            setattr(self, f"h{k}", brainstate.HiddenState(jnp.zeros((*self.program.batch, size))))

    def update(self, x: Any) -> list[Any]:
        weights = iter(self.program.weights)

        def operand() -> Any:
            names, chain, _ = next(weights)
            return CHAINS[chain](*(getattr(self, n).value for n in names))

        values: list[Any] = []
        for node in self.program.nodes:
            read = [values[i] for i in node.reads]
            values.append(self._node(node, read, x, operand))
        for k, node in enumerate(self.program.new):
            getattr(self, f"h{k}").value = values[node]
        return [values[k] for k in self.program.outputs]

    def _node(self, node: Any, read: list[Any], x: Any, operand: Any) -> Any:
        match node.kind:
            case "x":
                return x
            case "h":
                return getattr(self, f"h{node.value}").value
            case "matmul":
                return braintrace.matmul(read[0], operand())
            case "element_wise":
                return braintrace.element_wise(operand())
            case "scale":
                return node.value * read[0]
            case "roll":
                return jnp.roll(read[0], node.value, -1)
            case "part":
                return read[0][..., slice(*node.value)]
            case "cat":
                return jnp.concatenate(read, -1)
            case "add":
                return read[0] + read[1]
            case "mul":
                return read[0] * read[1]
            case kind:
                return FUNCTIONS[kind](read[0])


def loss(outputs: list[Any]) -> Any:
    return sum(0.5 * jnp.sum(out**2) for out in outputs)


def far_apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / (1e-3 + np.abs(expected).max()))


@contextlib.contextmanager
def quietly():
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        yield


def check(program: Program) -> None:
    rng = np.random.default_rng(0)
    params = {name: 0.6 * rng.normal(size=shape) for name, shape in program.params.items()}
    xs = rng.normal(size=(T, *program.batch, I))
    strict, full, structure = gradients(program, params, xs)
    with quietly():
        learner = braintrace.compile(GeneratedModel(program, params), "d_rtrl", jnp.asarray(xs[0]), absorb=False)
        groups = [[int(p[0][1:]) for p in g.hidden_paths] for g in learner.graph.hidden_groups]
        assert sorted(map(sorted, groups)) == sorted(structure.members(g) for g in structure.groups)
        found = learnt(learner, xs)
        single = by_single_calls(learner, xs) if learner.plan.carry.meeting(learner.plan) is not None else found
        e_prop = braintrace.EProp(learner.model, learner.graph)
        at_new_states = learnt(e_prop, xs) if new_states_tell_all(e_prop.plan) else found
        memories = learner.graph.hidden_perturb.memories
        absorbing = learnt(type(learner)(learner.model, learner.graph), xs) if memories else found
        check_windows(learner, xs)

    for name in program.params:
        assert far_apart(found[name], strict[name]) < TOLERANCE, f"{name} is not the strict gradient"
        assert far_apart(single[name], strict[name]) < TOLERANCE, f"{name} is not the strict gradient in single calls"
        assert far_apart(at_new_states[name], strict[name]) < TOLERANCE, f"{name} is not the strict gradient by L e"
    for taken, gradient in (((), found), (memories, absorbing)):
        exact_of: dict[str, bool] = {}
        for certificate in learner.graph.certificates(taken):
            for (name,) in certificate.operation.parameter_paths:
                exact_of[name] = exact_of.get(name, True) and certificate.exact
        for name in program.params:
            if exact_of.get(name, True):  # what the step does not use has no gradient at all
                assert far_apart(gradient[name], full[name]) < TOLERANCE, f"{name} is certified exact, and is not"


def new_states_tell_all(plan: Any) -> bool:
    """Whether all credit within a step passes its new states, by D and F: then L e is the strict gradient."""
    beyond = {braintrace.Omission.DOWNSTREAM_MEMORY, braintrace.Omission.RECURRENT_MIXING}
    certificates, driving = plan.certificates(), {}
    for c in plan.traced_couplings:
        driving[c.operation] = driving.get(c.operation, 0) | 1 << c.group
    if any(set(certificates[k].omissions) - beyond for k in driving):
        return False
    states = {index: plan.transitions[index].group.hidden_paths for index in plan.traced}
    return not goes_around(plan.graph.hidden_perturb, plan.step, states, driving)


def check_windows(learner: Any, xs: np.ndarray) -> None:
    """Windows of one step give one gradient, folded together or one by one, and in single calls by L e as by q e."""
    options = {"vjp_method": "multi-step", "absorb": False}
    windows = type(learner)(learner.model, learner.graph, **options)
    if windows.plan.carry.meeting(windows.plan) is None:
        return
    together = learnt(windows, xs)
    for found in (learnt(windows, xs, fold=1), by_single_calls(windows, xs)):
        for name in together:
            assert far_apart(found[name], together[name]) < TOLERANCE, name


def learnt(learner: Any, xs: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    found = learner.etrace_grad(jnp.asarray(xs), step_fn=lambda x: loss(learner(x)), reduction="sum", **options)
    learner.reset_state()  # another learner of the same model starts where this one did
    return {path[0]: np.asarray(value) for path, value in found.items()}


def by_single_calls(learner: Any, xs: np.ndarray) -> dict[str, np.ndarray]:
    step = brainstate.transform.grad(lambda x: loss(learner(x)), learner.param_states)
    steps = brainstate.transform.jit(lambda xs: brainstate.transform.for_loop(step, xs))(jnp.asarray(xs))
    learner.reset_state()
    return {path[0]: np.asarray(value).sum(0) for path, value in steps.items()}


OPTIONS = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}


@settings(max_examples=50, **OPTIONS)
@given(programs())
def test_programs(program):
    check(program)


@pytest.mark.slow
@settings(max_examples=500, **OPTIONS)
@given(programs())
def test_many_programs(program):
    check(program)
