import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import compile
from braintrace_primitives import GenericTraceRule, TraceRule, register_primitive
from braintrace_primitives.testing import ConformanceError


class Right(TraceRule):
    """Of x · gain, element by element: one number for each."""

    def init(self, x, weights, y, num_states, params, dtype):
        return {"gain": jnp.zeros((num_states, *y.shape), dtype)}

    def accumulate(self, xs, factors, weights, params):
        return {"gain": (factors * xs[:, None]).sum(0)}

    def decay(self, trace, blocks, params):
        return {"gain": jnp.einsum("sr...,r...->s...", blocks, trace["gain"])}

    def contract(self, trace, signal, weights, params):
        return {"gain": (signal * trace["gain"]).sum(0)}


class WrongInit(Right):
    def init(self, *abstract):
        return {"gain": super().init(*abstract)["gain"][0]}


class WrongAccumulate(Right):
    def accumulate(self, xs, factors, weights, params):
        return {"gain": factors * xs[:, None]}


class WrongDecay(Right):
    def decay(self, trace, blocks, params):
        return {"gain": blocks * trace["gain"]}


class WrongContract(Right):
    def contract(self, trace, signal, weights, params):
        return {"gain": (signal * trace["gain"]).sum()}  # would broadcast to the weight


class WrongName(Right):
    def contract(self, trace, signal, weights, params):
        return {"weight": (signal * trace["gain"]).sum(0)}


class WrongPullback(Right):
    def pullback(self, xs, weights, gs, params):
        return {"gain": (gs * xs).sum()}


class Broken(Right):
    def decay(self, trace, blocks, params):
        return {"gain": blocks @ jnp.ones((7, 7))}


class WrongGeneric(GenericTraceRule):
    def accumulate(self, xs, factors, weights, params):
        return {name: value.sum(0) for name, value in super().accumulate(xs, factors, weights, params).items()}


class Gated(brainstate.nn.Module):
    """Leaky units behind a gain."""

    def __init__(self, primitive):
        super().__init__()
        self.primitive = primitive
        self.gain = brainstate.ParamState(jnp.array([0.5, 1.0, 2.0]))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros(3))

    def update(self, x):
        self.h.value = jnp.tanh(0.5 * self.h.value + self.primitive(x, self.gain.value))
        return self.h.value


def learner_of(rule, algorithm):
    primitive = register_primitive(f"test_{rule.__name__}_{algorithm}", lambda x, gain: x * gain, trace_rule=rule)
    return compile(Gated(primitive), algorithm, jnp.zeros(3))


@pytest.mark.parametrize(
    ("rule", "method"),
    [
        (WrongInit, "accumulate"),
        (WrongAccumulate, "accumulate"),
        (WrongDecay, "decay"),
        (WrongContract, "contract"),
        (WrongName, "contract"),
        (WrongPullback, "pullback"),
        (Broken, "decay"),
        (WrongGeneric, "accumulate"),
    ],
)
def test_a_rule_of_wrong_shapes_is_refused_when_a_learner_is_made(rule, method):
    with pytest.raises(ConformanceError, match=f"'test_{rule.__name__}_d_rtrl'") as refused:
        learner_of(rule, "d_rtrl")
    error = refused.value
    assert error.where == f"{rule.__name__}.{method}"
    assert "float32[" in error.found
    assert "float32[" in error.expected
    assert "check_primitive" in error.fix


def test_found_and_expected_are_shapes():
    with pytest.raises(ConformanceError) as refused:
        learner_of(WrongContract, "eprop")
    assert refused.value.found.startswith("{'gain': float32[]} for ")
    assert refused.value.expected == "{'gain': float32[3]}"


def test_factors_keep_the_exact_trace_of_an_operation_without_input():
    primitive = register_primitive("test_wrong_bias", lambda gain: 2 * gain, trace_rule=WrongGeneric)
    with pytest.raises(ConformanceError, match=r"WrongGeneric\.accumulate"):
        compile(Gated(lambda x, gain: x + primitive(gain)), "pp_prop", jnp.zeros(3), decay_or_rank=0.9)


def test_what_an_algorithm_does_not_ask_of_a_rule_may_be_missing():
    class Pullback(TraceRule):
        pass

    learner_of(Pullback, "bptt")
    with pytest.raises(NotImplementedError, match="needs init, accumulate, decay and contract"):
        learner_of(Pullback, "d_rtrl")
    with pytest.raises(ConformanceError, match="pullback"):
        learner_of(WrongPullback, "bptt")


def test_a_right_rule_learns():
    xs = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    grads = {}
    for rule, algorithm in ((Right, "d_rtrl"), (GenericTraceRule, "bptt")):
        learner = learner_of(rule, algorithm)
        grads[algorithm] = learner.etrace_grad(xs, step_fn=lambda x, f=learner: (f(x) ** 2).sum())["gain",]
    np.testing.assert_allclose(grads["d_rtrl"], grads["bptt"], rtol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda g: (g != 0).all(), grads))
