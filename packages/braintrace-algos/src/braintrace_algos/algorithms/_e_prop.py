"""e-prop: eligibility propagation."""

from typing import Any

import jax

from braintrace_algos._checks import as_key, check_choice, check_decay
from braintrace_algos._errors import LearnerError, LearnerTypeError
from braintrace_algos._feedback import random_feedback
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, FilteredTraceCarry, recurrent_groups


class EProp(OnlineLearner):
    """Eligibility traces that meet a learning signal broadcast by the readout.

    .. math:: e^t = D^t e^{t-1} + F^t \\, ∂y^t/∂w, \\qquad ē^t = κ ē^{t-1} + e^t, \\qquad dw = Σ_t L^t ē^t

    with L^t = ∂l^t/∂h^t the signal that readers outside the group's own transition send to the new state. The filter κ
    stands for a leaky readout and acts on relations into recurrent groups only, never on the readout's own weights.
    It stands for the leak exactly where the readout reads the states linearly. The derivative of a nonlinear one, such
    as the surrogate derivative of spikes, belongs to L^t and is taken at the last step alone, whereas the filter of the
    paper is on e^t times that derivative. For that, let the model keep its spikes in a hidden state that the readout
    reads (``self.z = HiddenState(...)``): the trace of z is the paper's. D-RTRL absorbs the leak either way.
    With ``feedback="random"`` the signal passes the readout's operations by fixed random weights instead of their own,
    normal with variance 1 / n for operations whose outputs sum n of their weights up.

    The trace leaves recurrent mixing out, as D-RTRL does. Where κ = 0 and no output bypasses the state, it is the
    strict D-RTRL gradient.

    Parameters
    ----------
    feedback : {"symmetric", "random"}
    kappa_filter_decay : float
        κ in [0, 1).
    random_feedback_key : jax.Array or int, optional
        Needed for random feedback, and for nothing else.
    **options
        Of `OnlineLearner`.

    References
    ----------
    Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons",
    Nature Communications 11, 3625 (2020).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_algos import compile
    >>> from braintrace_primitives import matmul
    >>> class Recurrent(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w, self.out = brainstate.ParamState(jnp.ones((5, 3))), brainstate.ParamState(jnp.ones((3, 1)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         y = matmul(jnp.concatenate([x, self.h.value]), self.w.value)
    ...         self.h.value = 0.9 * self.h.value + jnp.tanh(y)
    ...         return matmul(self.h.value, self.out.value)
    >>> learner = compile(Recurrent(), EProp, jnp.zeros(2), feedback="random", random_feedback_key=0)
    >>> grads = learner.etrace_grad(jnp.ones((4, 2)), step_fn=lambda x: learner(x).sum())
    >>> grads[("w",)].shape
    (5, 3)
    """

    signal = "state"

    def __init__(
        self,
        *args: Any,
        feedback: str = "symmetric",
        kappa_filter_decay: float = 0.0,
        random_feedback_key: jax.Array | int | None = None,
        **options: Any,
    ):
        check_choice("feedback", feedback, ("symmetric", "random"))
        check_decay("kappa_filter_decay", kappa_filter_decay)
        if feedback == "random" and random_feedback_key is None:
            raise LearnerTypeError(
                "Random feedback needs a key.", where="EProp", expected="random_feedback_key=jax.random.key(seed)"
            )
        if feedback != "random" and random_feedback_key is not None:
            raise LearnerError(
                "Nothing is drawn for this feedback: the key would change nothing.",
                where="EProp",
                found=f"feedback={feedback!r}, random_feedback_key={random_feedback_key!r}",
                expected='feedback="random", or no random_feedback_key',
            )
        self.kappa = kappa_filter_decay
        super().__init__(*args, **options)
        if kappa_filter_decay:
            check_choice("vjp_method (with a kappa filter)", self.vjp_method, ("single-step",))
        if feedback == "random":
            key = as_key("random_feedback_key", random_feedback_key)
            self.plan = random_feedback(self.plan, recurrent_groups(self.graph), key)

    def _make_carry(self) -> Carry:
        return FilteredTraceCarry(self.kappa)
