"""Loops of which a part is done ahead and behind, against `jax.lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_compiler._split_scan import split_scan
from braintrace_compiler._way_back import with_way_back
from braintrace_primitives import matmul
from braintrace_primitives._jax_compat import eval_jaxpr, make_jaxpr_without_consts, scan_arity

T, B, I, H = 5, 2, 3, 4


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defjvp(lambda primals, tangents: (spike(*primals), jnp.maximum(0, 1 - abs(primals[0])) * tangents[0]))


def joined(w, x, h):
    """``[x, h] @ w`` the way a learner takes it inside a loop."""
    program, _ = make_jaxpr_without_consts(
        jax.make_jaxpr(lambda w, x, h: matmul(jnp.concatenate([x, h], -1), w))(w, x, h)
    )
    return eval_jaxpr(with_way_back(program, frozenset(program.invars[2:])), w, x, h)[0]


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(I + H, H), (H, 2), (T, B, I), (T, B, 2)]
    with jax.enable_x64():
        yield [jax.random.normal(k, s, jnp.float64) for k, s in zip(keys, shapes, strict=True)]


def run(scan, w, out, xs, ys, inner):
    """Losses of a spiking layer with noise, a loop and a branch in its step; with `inner`, gradients too."""

    def body(carry, inputs):
        h, key, count, total = carry
        x, y = inputs
        key, now = jax.random.split(key)
        noise = jax.random.normal(now, (B, H), h.dtype)
        late = jax.random.normal(jax.random.fold_in(now, 1), (B, 2), h.dtype)

        def loss(h, w, out):
            s = spike(h - 0.5)
            new = 0.9 * h + jnp.tanh(joined(w, x, s)) + 0.1 * noise
            new = jax.lax.fori_loop(0, 2, lambda _, v: 0.5 * v + jnp.sin(v), new)
            read = spike(new - 1) @ out + jax.lax.cond(count > 2, jnp.sin, jnp.cos, new) @ out + late
            return jnp.mean((read - y) ** 2), (new, read)

        if inner:
            (of_h, *others), (h, read) = jax.grad(loss, (0, 1, 2), has_aux=True)(h, w, out)
            return (h, key, count + 1, jax.tree.map(jnp.add, total, others)), (of_h, read, x @ out[:I])
        value, (h, read) = loss(h, w, out)
        return (h, key, count + 1, [total[0] + w * value, value + total[1]]), (value, read, x @ out[:I])

    start = jnp.zeros((B, H)), jax.random.key(1, impl="rbg"), 0, [jnp.ones_like(w), jnp.ones_like(out)]
    (h, _, count, total), outputs = scan(body, start, (xs, ys))
    return h, count, total, outputs


@pytest.mark.parametrize("inner", [False, True])
def test_values_and_gradients_are_those_of_the_scan(problem, inner):
    """The random numbers are of a kind that mapped keys would change."""

    def total(scan, *problem):
        h, _, *others = run(scan, *problem, inner=inner)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves((h, others)))

    plain, other = (jax.jit(lambda *p, s=s: run(s, *p, inner=inner))(*problem) for s in (jax.lax.scan, split_scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), plain, other)
    if not inner:
        plain, other = (
            jax.jit(jax.grad(total, (1, 2, 3)), static_argnums=0)(s, *problem) for s in (jax.lax.scan, split_scan)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), plain, other)


def inside(scan, *problem):
    """Products inside the loop, by the shapes of their operands, and shapes of what the loop writes at each step."""
    program = jax.make_jaxpr(lambda *p: scan(body_of(*p[:2]), jnp.zeros((B, H)), p[2:]))(*problem)
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive is jax.lax.scan_p]
    arity = scan_arity(loop)
    return sorted(products(loop.params["jaxpr"])), [v.aval.shape[1:] for v in loop.outvars[arity.num_carry :]]


def products(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive is jax.lax.dot_general_p:
            yield tuple(v.aval.shape for v in eqn.invars)
        for value in eqn.params.values():
            if hasattr(value, "eqns"):
                yield from products(value)


def body_of(w, out):
    def body(h, inputs):
        x, y = inputs
        h = jnp.tanh(joined(w, x, h))
        return h, jnp.mean((h @ out - y) ** 2)

    return body


def test_only_the_product_of_the_state_stays_inside(problem):
    assert inside(jax.lax.scan, *problem)[0] == [((B, I), (I, H)), ((B, H), (H, 2)), ((B, H), (H, H))]
    assert inside(split_scan, *problem) == ([((B, H), (H, H))], [(B, H)])


def test_what_no_step_changes_is_no_state(problem):
    """A weight that is handed on from step to step: its product with the input is taken ahead all the same."""
    w, out, xs, ys = problem

    def body(carry, inputs):
        weight, h = carry
        h, loss = body_of(weight, out)(h, inputs)
        return (weight, h), loss

    start = w, jnp.zeros((B, H))
    program = jax.make_jaxpr(lambda *start: split_scan(body, start, (xs, ys)))(*start)
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive is jax.lax.scan_p]
    arity = scan_arity(loop)
    assert [v.aval.shape for v in loop.outvars[: arity.num_carry]] == [(B, H)]
    assert [v.aval.shape[1:] for v in loop.outvars[arity.num_carry :]] == [(B, H)]
    assert list(products(loop.params["jaxpr"])) == [((B, H), (H, H))]
    plain, other = (jax.jit(lambda s=s: s(body, start, (xs, ys)))() for s in (jax.lax.scan, split_scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), plain, other)


def test_sums_leave_the_loop_where_their_terms_are_small(problem):
    """Products do as their factors; of two sums that are not, one has terms much larger than all else of a step."""
    w, out, xs, ys = problem

    def body(carry, inputs):
        h, gradient, small, large = carry
        h = jnp.tanh(joined(w, inputs[0], h))
        read = h @ out - inputs[1]
        small, large = small + jnp.sum(h, 0), large + jnp.sin(h[:, :, None] * w[:, 0])
        return (h, gradient + (read.T @ h).T, small, large), jnp.mean(read**2)

    start = jnp.zeros((B, H)), jnp.ones_like(out), jnp.zeros(H), jnp.ones((B, H, I + H))
    program = jax.make_jaxpr(lambda xs: split_scan(body, start, xs))((xs, ys))
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive is jax.lax.scan_p]
    arity = scan_arity(loop)
    assert [v.aval.shape for v in loop.outvars[: arity.num_carry]] == [(B, H), (B, H, I + H)]
    plain, other = (jax.jit(lambda s=s: s(body, start, (xs, ys)))() for s in (jax.lax.scan, split_scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), plain, other)


def test_a_long_state_is_not_held(problem):
    """Of a buffer of the last 50 states, one is read; only that one is kept for all steps."""

    def body(carry, x):
        buffer, t = carry
        old = buffer[t % 50]
        h = jnp.tanh(joined(problem[0], x, old))
        return (buffer.at[t % 50].set(h), t + 1), (h @ problem[1], jnp.sin(buffer[(t + 1) % 50]))

    def loop(scan):
        program = jax.make_jaxpr(lambda xs: scan(body, (jnp.zeros((50, B, H)), 0), xs))(problem[2])
        (eqn,) = [eqn for eqn in program.eqns if eqn.primitive is jax.lax.scan_p]
        return eqn.outvars[scan_arity(eqn).num_carry :]

    assert max(v.aval.size for v in loop(split_scan)) == T * B * H


def test_effects_keep_the_loop_whole(problem):
    seen = []

    def body(h, x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0], ordered=True)
        return h, x @ problem[1][:I]

    jax.block_until_ready(split_scan(body, jnp.zeros(()), problem[2]))
    jax.effects_barrier()
    np.testing.assert_allclose(seen, problem[2][:, 0, 0])


@pytest.mark.parametrize("dtype", ["int8", "int32"])
def test_sums_keep_their_dtype(dtype):
    """Small integers wrap as they do in the loop."""

    def body(total, x):
        return total + x, 2 * x

    xs = jnp.full(7, 50, dtype)
    with jax.enable_x64():
        plain, other = (scan(body, jnp.ones((), dtype), xs)[0] for scan in (jax.lax.scan, split_scan))
    assert (other.dtype, float(other)) == (plain.dtype, float(plain))


def test_what_the_body_repeats_is_made_once_and_not_kept():
    """As D and F do, which are made of values behind a stop_gradient, by a program of their own."""

    def body(h, x):
        z = 0.5 * h + x
        new = jnp.tanh(z)
        return new, 1 - jnp.tanh(jax.lax.stop_gradient(z)) ** 2

    program = jax.make_jaxpr(lambda h, xs: split_scan(body, h, xs))(jnp.zeros(3), jnp.ones((4, 3)))
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    inside = [eqn.primitive.name for eqn in loop.params["jaxpr"].eqns]
    assert inside.count("tanh") == 1
    assert "tanh" not in [eqn.primitive.name for eqn in program.eqns]
    assert len(loop.outvars) == 2  # the state, and what it was at each step: z is not kept
