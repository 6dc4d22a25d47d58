"""What a step reads of brainstate's environment is fixed by the compilation, and another value is refused."""

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

from braintrace_algos import LearnerError, MultiStepData, compare_gradients, compile
from braintrace_primitives import matmul

XS = jnp.ones((4, 3, 2))


class Dropped(brainstate.nn.Module):
    """Leaky units under dropout, whose leak follows from the time step."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((2, 5)))
        self.dropout = brainstate.nn.Dropout(0.5)

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 5)))

    def update(self, x):
        leak = jnp.exp(-brainstate.environ.get_dt())
        self.h.value = leak * self.h.value + matmul(x, self.w.value)
        return self.dropout(self.h.value)


def make(**environment):
    with brainstate.environ.context(**{"dt": 0.5, "fit": True, **environment}):
        return compile(Dropped(), "d_rtrl", XS[0], batch_size=3)


CALLS = {
    "a call": lambda learner: learner(XS[0]),
    "a call in jit": lambda learner: brainstate.transform.jit(learner)(XS[0]),
    "a window": lambda learner: learner(MultiStepData(XS)),
    "etrace_grad": lambda learner: learner.etrace_grad(XS, step_fn=lambda x: learner(x).mean()),
    "chunks": lambda learner: learner.etrace_grad(
        XS, step_fn=lambda x: learner(MultiStepData(x)).mean((1, 2)), chunk_size=2
    ),
    "etrace_train": lambda learner: learner.etrace_train(
        XS, step_fn=lambda x: learner(x).mean(), optimizer=optax.sgd(0.1)
    ),
    "etrace_evolve": lambda learner: learner.etrace_evolve(XS),
    "compare_gradients": lambda learner: compare_gradients(learner, XS, step_fn=lambda x: learner(x).mean()),
    "a face": lambda learner: learner.functional().step(*learner.functional().init(), XS[0]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("key", "other"), [("fit", False), ("dt", 0.25)])
def test_another_value_is_refused(name, key, other):
    learner = make()
    before = jax.tree.leaves([state.value for state in learner.states().values()])
    with brainstate.environ.context(**{key: other}), pytest.raises(LearnerError, match=f"'{key}'"):
        CALLS[name](learner)
    after = jax.tree.leaves([state.value for state in learner.states().values()])
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_a_learner_that_ran_before_refuses_too():
    """Its programs are compiled, and would not look."""
    learner = make()
    for call in CALLS.values():
        call(learner)
    face = learner.functional()
    with brainstate.environ.context(fit=False):
        for call in CALLS.values():
            with pytest.raises(LearnerError, match="'fit'"):
                call(learner)
        with pytest.raises(LearnerError, match="'fit'"):
            face.fold(*face.init(), XS, loss=lambda out: out.mean())


def test_the_same_value_none_and_others_that_no_step_reads_are_fine():
    learner = make()
    learner(XS[0])  # outside of the context
    with brainstate.environ.context(dt=jnp.asarray(0.5), fit=True, t=3.0):
        learner(XS[0])


def test_a_value_that_the_step_sets_itself_is_not_of_the_surroundings():
    class Timed(Dropped):
        def update(self, x):
            with brainstate.environ.context(dt=0.5):
                return super().update(x)

    with brainstate.environ.context(dt=0.1, fit=True):
        learner = compile(Timed(), "d_rtrl", XS[0], batch_size=3)
    with brainstate.environ.context(dt=0.2):
        assert learner(XS[0]).shape == (3, 5)


def test_two_learners_of_one_model_train_and_evaluate():
    learner = make()
    with brainstate.environ.context(fit=False, dt=0.5):
        tester = compile(learner.model, "d_rtrl", XS[0], batch_size=3)
        assert bool((tester(XS[0]) == 2).all())
    learner.reset_state()
    assert {0.0, 4.0} == set(learner(XS[0]).ravel().tolist())
