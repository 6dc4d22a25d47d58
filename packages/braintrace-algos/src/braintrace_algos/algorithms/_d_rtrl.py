"""D-RTRL: real-time recurrent learning along the diagonal of the recurrence."""

from braintrace_algos._learner import OnlineLearner


class D_RTRL(OnlineLearner):
    """Online learning with one eligibility trace for each synapse and state.

    The trace follows position-wise memory only:

    .. math:: ε^t = D^t ε^{t-1} + F^t \\, ∂y^t/∂w, \\qquad
              dl^t/dw = ∂l^t/∂w |_{h^{t-1}} + q^t · ε^{t-1}

    with D^t the diagonal (position by position) part of ∂h^t/∂h^{t-1}, F^t = ∂h^t/∂y^t and q^t = ∂l^t/∂h^{t-1}.
    With ``vjp_method="single-step"`` the recurrent path through marked operations is left out of q; with
    ``"multi-step"`` nothing is left out inside a window of `window` steps, and the trace brings the past in at its
    entry. Exact where the certificate in ``learner.report`` says so.

    Memory B · I · O · S numbers for each operation with I inputs, O outputs and S states per position; no trace is
    kept where the previous state cannot matter.

    References
    ----------
    Wang et al., "Model-agnostic linear-memory online learning in spiking neural networks" (BrainScale).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
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
    >>> from braintrace_algos import compile
    >>> learner = compile(Leaky(), D_RTRL, jnp.zeros(2))
    >>> grads = learner.etrace_grad(jnp.ones((4, 2)), step_fn=lambda x: learner(x).sum(), reduction="sum")
    >>> grads[("w",)].tolist()
    [[6.125, 6.125, 6.125], [6.125, 6.125, 6.125]]
    """


ParamDimVjpAlgorithm = D_RTRL
