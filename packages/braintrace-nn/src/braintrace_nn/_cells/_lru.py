"""The linear recurrent unit."""

from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp
from brainstate import environ, random
from brainstate.nn import init

from braintrace_nn._errors import ConfigurationError
from braintrace_nn._init import ZEROS, Initializer, as_count, draw, parameter
from braintrace_nn._linear import Linear
from braintrace_nn._mark import per_position

from ._base import RecurrentCell


class LRUCell(RecurrentCell):
    r"""Linear recurrent unit: a diagonal complex recurrence (Orvieto et al. 2023).

    .. math::

        h^t &= \lambda \odot h^{t-1} + \gamma \odot (B x^t),
            \quad \lambda = \exp(-e^{\nu} + i e^{\theta}), \quad \gamma = e^{\gamma_{\log}} \\
        y^t &= \mathrm{Re}(C h^t) + D \odot x^t

    The complex state is kept as two real ones.

    Certificate: exact for every parameter; no weight mixes positions of the state.

    Parameters
    ----------
    d_model : int
        Number of input and of output features M.
    d_hidden : int
        Number of complex hidden units N.
    r_min, r_max : float
        Range of the initial moduli :math:`|\lambda|`, 0 ≤ r_min < r_max ≤ 1. Their squares are uniform: the
        eigenvalues are uniform on a ring of the complex plane.
    max_phase : float
        The initial phases are uniform in (0, max_phase), in radians.
    state_init : callable, array or number
        Initial value of both hidden states. Zero by default.
    name : str, optional

    Attributes
    ----------
    nu_log, theta_log, gamma_log : ParamState
        Logarithms of decay rate, phase and input gain, shape (N,). The gain starts at
        :math:`\sqrt{1 - |\lambda|^2}`, which gives the state the variance of its input.
    B_re, B_im : Linear
        Parameter ``weight`` = ``{"weight": (M, N)}``, normal with variance 1 / 2M.
    C_re, C_im : Linear
        Parameter ``weight`` = ``{"weight": (N, M)}``, normal with variance 1 / N.
    D : ParamState
        Shape (M,), standard normal.
    h_re, h_im : HiddenState
        Real and imaginary part of h, shape (N,) or (B, N).

    References
    ----------
    A. Orvieto et al., Resurrecting recurrent neural networks for long sequences, ICML 2023, arXiv:2303.06349.
    Online: N. Zucchet et al., Online learning of long-range dependencies, NeurIPS 2023, arXiv:2305.15947.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = LRUCell(d_model=4, d_hidden=6, r_min=0.9, r_max=0.99)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape, cell.h_re.value.shape
    ((2, 4), (2, 6))
    """

    state_names: ClassVar[tuple[str, ...]] = ("h_re", "h_im")
    h_re: brainstate.HiddenState
    h_im: brainstate.HiddenState

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 6.28,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        model, hidden = as_count(d_model, "d_model"), as_count(d_hidden, "d_hidden")
        super().__init__(model, model, state_size=hidden, state_init=state_init, name=name)
        if not (0 <= r_min < r_max <= 1 and max_phase > 0):
            raise ConfigurationError(
                "The eigenvalues cannot be drawn from this ring.",
                found=f"r_min={r_min}, r_max={r_max}, max_phase={max_phase}",
                expected="0 <= r_min < r_max <= 1 and max_phase > 0",
            )
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase
        nu_log, theta_log, gamma_log = draw(self._draw_ring, self.state_size)
        self.nu_log = brainstate.ParamState(nu_log)
        self.theta_log = brainstate.ParamState(theta_log)
        self.gamma_log = brainstate.ParamState(gamma_log)
        into, out_of = init.Normal(scale=(2 * model) ** -0.5), init.Normal(scale=hidden**-0.5)
        self.B_re = Linear(model, hidden, into, None)
        self.B_im = Linear(model, hidden, into, None)
        self.C_re = Linear(hidden, model, out_of, None)
        self.C_im = Linear(hidden, model, out_of, None)
        self.D = brainstate.ParamState(parameter(init.Normal(), self.out_size, "D"))

    def _draw_ring(self, shape: tuple[int, ...]) -> jax.Array:
        """Logarithms of decay rate, phase and gain of eigenvalues drawn uniformly from the ring."""
        dtype = environ.dftype()
        drawn: Any = random.uniform(1e-6, 1 - 1e-6, (2, *shape), dtype=dtype)
        u, phase = drawn
        loss = (1 - self.r_max**2) + u * (self.r_max**2 - self.r_min**2)  # 1 - |λ|², without cancellation
        return jnp.stack([jnp.log(-0.5 * jnp.log1p(-loss)), jnp.log(self.max_phase * phase), 0.5 * jnp.log(loss)])

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` and the returned output have shape (M,) or (B, M)."""
        x, h_re, h_im = self.read(x)
        modulus = per_position(jnp.exp(-jnp.exp(self.nu_log.value)), h_re.shape)
        phase = per_position(jnp.exp(self.theta_log.value), h_re.shape)
        gamma = per_position(jnp.exp(self.gamma_log.value), h_re.shape)
        lam_re, lam_im = modulus * jnp.cos(phase), modulus * jnp.sin(phase)
        new_re = lam_re * h_re - lam_im * h_im + gamma * self.B_re(x)
        new_im = lam_re * h_im + lam_im * h_re + gamma * self.B_im(x)
        y = self.C_re(new_re) - self.C_im(new_im) + per_position(self.D.value, x.shape) * x
        self.h_re.value, self.h_im.value = new_re, new_im
        return y
