"""Algorithms that carry the influence of parameters on states: RTRL, SnAp-n and UORO."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_algos._checks import as_key, check_window, fixed, is_count
from braintrace_algos._errors import LearnerError
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import LARGEST, Carry, InfluenceCarry, NeighbourhoodCarry, SketchCarry


class RTRL(OnlineLearner):
    """Real-time recurrent learning: exact online gradients of every model.

    .. math:: C ← ∂h'/∂θ |_h + (∂h'/∂h) C, \\qquad dl/dθ = ∂l/∂θ |_h + (∂l/∂h) C

    over windows of K steps from state h to state h'. The influence matrix C takes B · N_h · P numbers for P
    parameters. With K = 1 a step costs about N_h² P; with windows of K steps that is divided by K, and K ≈ N_h makes it
    N_h P.
    The batch of a model that takes it itself counts into N_h: prefer ``compile(..., vmap=True)``.

    Parameters
    ----------
    window : int
        K.
    limit : int
        Largest number of elements of C; beyond it construction is refused with the numbers.
    **options
        Of `OnlineLearner`.

    References
    ----------
    Williams and Zipser, Neural Computation 1 (1989); windows: Schmidhuber, Neural Computation 4 (1992).

    Examples
    --------
    >>> RTRL.__mro__[1].__name__
    'OnlineLearner'
    """

    def __init__(self, *args: Any, window: int = 1, limit: int = LARGEST, **options: Any):
        check_window(window)
        self.limit = limit
        super().__init__(*args, window=window, **fixed(RTRL, options, vjp_method="multi-step"))

    def _make_carry(self) -> Carry:
        return InfluenceCarry(self.limit)


class SnAp(OnlineLearner):
    """Sparse n-step approximation of RTRL: a parameter's influence is kept where it arrives within n steps.

    .. math:: C ← P_n ∘ (∂h'/∂θ |_h + (∂h'/∂h) C)

    with P_n the pattern of units that the parameter reaches in n steps; the states of a unit belong together. n = 1
    keeps the units that it drives at once (the trace of D-RTRL, but with each unit's influence on itself through the
    recurrent matrix, and with q in full), and is exact where units do not talk to each other.
    With a dense recurrence n = 2 is RTRL already.

    The pattern follows from the structure of the step: sparse products, masks on weights, convolutions. Only what it
    keeps is stored, B · nnz_n numbers and what fills up blocks of different sizes; the report says how many, and
    `memory_report` their bytes. Weights that reach the same units share a block of units by weights, so that a step
    costs nnz_n times the units of a block, and as many reverse passes as it takes to tell the derivatives between
    units of a block apart: a few where the recurrence is sparse, one for each unit where it is dense. With everything
    within reach there is one block, and the cost is that of RTRL without windows.

    Parameters
    ----------
    n : int
        Order, at least 1.
    limit : int
        Largest number of influences to carry; beyond it compiling is refused with the numbers.
    **options
        Of `OnlineLearner`.

    References
    ----------
    Menick et al., "A practical sparse approximation for real time recurrent learning", ICLR 2021.

    Examples
    --------
    >>> SnAp.__mro__[1].__name__
    'OnlineLearner'
    """

    def __init__(self, *args: Any, n: int = 1, limit: int = LARGEST, **options: Any):
        if not is_count(n):
            raise LearnerError(
                "The order of SnAp is a number of steps.", found=repr(n), expected="an int of at least 1"
            )
        self.n, self.limit = n, limit
        super().__init__(*args, **fixed(SnAp, options, vjp_method="multi-step", window=1))

    def _make_carry(self) -> Carry:
        return NeighbourhoodCarry(self.n, self.limit)


class UORO(OnlineLearner):
    """Unbiased online recurrent optimization: the influence as a random product of rank one.

    .. math:: s ← ρ_0 (∂h'/∂h) s + ρ_1 ν, \\qquad z ← z/ρ_0 + (ν^T ∂h'/∂θ)/ρ_1, \\qquad E[s z^T] = C

    with random signs ν and ρ that balance the norms. Unbiased, noisy, and N_h + P numbers for each copy with P
    parameters; map a single-sample model (``vmap=True``) to average the noise over the batch. Products with ∂h'/∂h are
    matrix-free.

    Parameters
    ----------
    key : jax.Array or int
        Seed of the signs. Every reset draws fresh ones.
    window : int
        Steps between two draws.
    **options
        Of `OnlineLearner`.

    References
    ----------
    Tallec and Ollivier, "Unbiased online recurrent optimization", ICLR 2018.

    Examples
    --------
    >>> UORO.__mro__[1].__name__
    'OnlineLearner'
    """

    def __init__(self, *args: Any, key: Any = 0, window: int = 1, **options: Any):
        check_window(window)
        raw = as_key("key", key)
        if jnp.issubdtype(raw.dtype, jax.dtypes.prng_key):
            raw = jax.random.key_data(raw)
        self.key = brainstate.ShortTermState(raw)
        super().__init__(*args, window=window, **fixed(UORO, options, vjp_method="multi-step"))

    def _make_carry(self) -> Carry:
        return SketchCarry(self.key)
