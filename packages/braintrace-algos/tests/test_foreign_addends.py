"""Presynaptic factors of operations that users have made: right, or refused."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import compile
from braintrace_compiler import NotSupportedError
from braintrace_primitives import GenericTraceRule, embedding, matmul, register_primitive, repeated

I, H, N, T = 3, 4, 400, 6
FACTORED = [("pp_prop", {"decay_or_rank": 0.8}), ("ottt", {"decay": 0.8})]
XS = jax.random.normal(jax.random.key(0), (T, I))
INDICES = jnp.array([3, 301, 3, 302, 301, 399])


class Saturating(GenericTraceRule):
    """Of tanh(x) @ w, which is linear in tanh(x)."""

    def addend(self, x, weights):
        return jnp.tanh(x)

    def pullback_of_sums(self, sums, weights, gs, params):
        return {"w": jnp.einsum("ti,to->io", sums, gs)}


class Shifted(GenericTraceRule):
    """Of table[i] + shift, whose shift is met by no input."""

    def addend(self, x, weights):
        return jax.nn.one_hot(x, N)

    def pullback_of_sums(self, sums, weights, gs, params):
        return {"table": jnp.einsum("ti,to->io", sums, gs), "shift": gs.sum(0)}


saturating = register_primitive("foreign_saturating", lambda x, w: jnp.tanh(x) @ w)
told = register_primitive("foreign_saturating_told", lambda x, w: jnp.tanh(x) @ w, trace_rule=Saturating)
look_up = register_primitive("test_look_up", lambda i, table: table[i])
shifted = register_primitive("test_shifted", lambda i, table, shift: table[i] + shift, trace_rule=Shifted)
product = register_primitive("test_product", lambda x, w: jnp.einsum("i,io->o", x, w))
masked = register_primitive("test_masked", lambda x, w: jnp.where(jnp.arange(I) > 0, x, 0.0) @ w)
looped = register_primitive(
    "test_looped", lambda x, w: jax.lax.scan(lambda y, xw: (y + xw[0] * xw[1], None), jnp.zeros(H), (x, w))[0]
)


class Leaky(brainstate.nn.Module):
    """A leaky layer behind some operation."""

    def __init__(self, drive, rows):
        super().__init__()
        self.drive = drive
        self.w = brainstate.ParamState(jax.random.normal(jax.random.key(1), (rows, H)))
        self.b = brainstate.ParamState(jnp.linspace(-1.0, 1.0, H))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros(H))

    def update(self, x):
        self.h.value = jnp.tanh(0.7 * self.h.value + self.drive(x, self))
        return self.h.value


def gradient(algorithm, options, drive, xs=XS, fold=None):
    learner = compile(Leaky(drive, N if xs is INDICES else I), algorithm, xs[0], **options)
    return learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).sum(), fold=fold)


def assert_same(found, expected):
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=2e-5, atol=1e-6)
    assert float(jnp.abs(expected["w",]).max()) > 0.1


@pytest.mark.parametrize(("algorithm", "options"), FACTORED)
@pytest.mark.parametrize(
    ("drive", "xs", "found"),
    [
        (lambda x, m: saturating(x, m.w.value), XS, r"foreign_saturating of an input float32\[3\]"),
        (lambda x, m: repeated(saturating)(x[None], m.w.value)[0], XS, "foreign_saturating_repeated of an input"),
        (lambda i, m: look_up(i, m.w.value), INDICES, r"test_look_up of an input int32\[\]"),
    ],
)
def test_what_cannot_be_added_up_is_refused(algorithm, options, drive, xs, found):
    """The rows of a table at an index that is a sum of indices, and the tanh of a sum of inputs, gave a gradient."""
    with pytest.raises(NotSupportedError, match=rf"(?s)test_foreign_addends.*{found}.*op\(jnp.tanh\(x\), w\)"):
        gradient(algorithm, options, drive, xs)
    assert_same(gradient("d_rtrl", {}, drive, xs), gradient("bptt", {}, drive, xs))


@pytest.mark.parametrize("options", [{}, {"trace_dtype": jnp.bfloat16}])
def test_where_nothing_is_added_up_nothing_is_refused(options):
    found = gradient("ostl_feedforward", options, lambda i, m: look_up(i, m.w.value), INDICES)
    expected = gradient("ostl_feedforward", options, lambda i, m: embedding(i, m.w.value), INDICES)
    assert_same(found, expected)
    found = gradient("ostl_feedforward", {}, lambda x, m: saturating(x, m.w.value))
    assert_same(found, gradient("ostl_feedforward", {}, lambda x, m: matmul(jnp.tanh(x), m.w.value)))


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize(("algorithm", "options"), FACTORED)
@pytest.mark.parametrize(
    ("drive", "same"),
    [
        (lambda x, m: product(x, m.w.value), lambda x, m: matmul(x, m.w.value)),
        (lambda x, m: looped(x, m.w.value), lambda x, m: matmul(x, m.w.value)),
        (lambda x, m: masked(x, m.w.value), lambda x, m: matmul(x.at[0].set(0.0), m.w.value)),
    ],
)
def test_what_is_affine_is_taken(drive, same, algorithm, options, fold):
    assert_same(gradient(algorithm, options, drive, fold=fold), gradient(algorithm, options, same, fold=fold))


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize(("algorithm", "options"), FACTORED)
def test_a_rule_says_what_is_added_up(algorithm, options, fold):
    """Also in the shape of the input, and beside another operation on it."""
    expected = gradient(algorithm, options, lambda x, m: matmul(jnp.tanh(x), m.w.value), fold=fold)
    assert_same(gradient(algorithm, options, lambda x, m: told(x, m.w.value), fold=fold), expected)

    def both(first, x, m):
        return matmul(x, m.w.value[:, ::-1]) + first(x, m)

    expected = gradient(algorithm, options, lambda x, m: both(lambda x, m: matmul(jnp.tanh(x), m.w.value), x, m))
    assert_same(gradient(algorithm, options, lambda x, m: both(lambda x, m: told(x, m.w.value), x, m)), expected)


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize(("algorithm", "options"), FACTORED)
def test_what_no_input_meets_is_not_filtered(algorithm, options, fold):
    """As the bias of a product of the same rows of ones and zeros."""
    found = gradient(algorithm, options, lambda i, m: shifted(i, m.w.value, m.b.value), INDICES, fold)

    def of_rows(i, m):
        return matmul(jax.nn.one_hot(i, N), m.w.value, m.b.value)

    assert_same(found, gradient(algorithm, options, of_rows, INDICES, fold))
