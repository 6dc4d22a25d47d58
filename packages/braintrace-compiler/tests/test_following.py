"""States that a step makes of the new values of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, graph

from braintrace_compiler import Feed, FeedKind
from braintrace_compiler._following import differentiate_following, find_following
from braintrace_primitives import matmul
from braintrace_primitives._jax_compat import eval_jaxpr


def transition(advance):
    """Of a model whose states c and h are ``advance(y, z, c, h)``, by operations on x and on h."""

    def step(m, x):
        joined = jnp.concatenate([x, m.h.value])
        y, z = matmul(joined, m.w.value), matmul(joined, m.u.value)
        m.c.value, m.h.value = advance(y, z, m.c.value, m.h.value)
        return m.h.value

    states = {"c": array(H, seed=1), "h": array(H, seed=2)}
    model = Model(step, {"w": array(I + H, H), "u": array(I + H, H, seed=3)}, states)
    perturb = graph(model, jnp.ones(I)).hidden_perturb
    return next(t for t in perturb.transitions if len(t.group.hidden_paths) == 2)


def follow(h_of):
    def advance(y, z, c, h):
        new = jax.nn.sigmoid(z) * c + jnp.tanh(y)
        return new, h_of(new, y, z, c, h)

    return advance


FOLLOWING = {
    "of the leader alone": (lambda new, y, z, c, h: jnp.tanh(new), set()),
    "gated by an operation": (lambda new, y, z, c, h: jax.nn.sigmoid(z) * jnp.tanh(new), {"z"}),
    "by a gate of both": (lambda new, y, z, c, h: new * y * z, {"y", "z"}),
    "scaled": (lambda new, y, z, c, h: 0.5 * new, set()),
    "there and back": (lambda new, y, z, c, h: jnp.roll(jnp.roll(new, 1), -1) * 2.0, set()),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_followers(name):
    h_of, direct = FOLLOWING[name]
    found = transition(follow(h_of))
    following = find_following(found, [0, 1])
    names = found.group.path_of_each_state
    assert [names[s] for s in following.leaders] == [("c",)]
    assert [names[s] for s in following.followers] == [("h",)]
    assert len(following.direct) == len(direct)
    assert find_following(found, [following.leaders[0]]) is None


def test_a_follower_may_be_remembered():
    """A spike that resets its membrane."""
    found = transition(lambda y, z, c, h: ((new := 0.9 * c * (1 - h) + y * z), jax.nn.sigmoid(new)))
    following = find_following(found, [0, 1])
    assert not following.direct
    assert not following.forgotten
    assert find_following(transition(follow(lambda new, *_: jnp.tanh(new))), [0, 1]).forgotten


NOT_FOLLOWING = {
    "reads the past of its leader": follow(lambda new, y, z, c, h: new * jnp.tanh(c)),
    "remembers itself": follow(lambda new, y, z, c, h: 0.5 * h + new),
    "is remembered, with more than the leader": lambda y, z, c, h: ((new := 0.9 * c + y - h), z * jnp.tanh(new)),
    "the same computed anew": follow(lambda new, y, z, c, h: jnp.tanh(jax.nn.sigmoid(z) * c + jnp.tanh(y))),
}


@pytest.mark.parametrize("name", NOT_FOLLOWING)
def test_what_does_not_follow(name):
    assert find_following(transition(NOT_FOLLOWING[name]), [0, 1]) is None


def test_a_chain_of_followers_has_one_leader():
    """h = tanh(g) of g = c z: both follow from c alone."""

    def step(m, x):
        y, z = matmul(x, m.w.value), matmul(x, m.u.value)
        m.c.value = jax.nn.sigmoid(y) * m.c.value + y
        m.g.value = m.c.value * z
        m.h.value = jnp.tanh(m.g.value)
        return m.h.value

    states = {name: array(H, seed=k) for k, name in enumerate("cgh")}
    (found,) = graph(
        Model(step, {"w": array(I, H), "u": array(I, H, seed=3)}, states), jnp.ones(I)
    ).hidden_perturb.transitions
    following = find_following(found, range(3))
    names = found.group.path_of_each_state
    assert [names[s] for s in following.leaders] == [("c",)]
    assert sorted(names[s] for s in following.followers) == [("g",), ("h",)]


def test_derivatives_of_followers():
    """J = σ(z) (1 - tanh² c) of h = σ(z) tanh(c), and what z brings directly, σ' tanh(c)."""
    found = transition(follow(lambda new, y, z, c, h: jax.nn.sigmoid(z) * jnp.tanh(new)))
    following = find_following(found, [0, 1])
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=v.aval.shape), v.aval.dtype) for v in found.program.invars]
    ((jacobian,),), F = differentiate_following(following, found, [(k, Feed(FeedKind.SAME)) for k in range(2)], inputs)
    new = np.asarray(eval_jaxpr(found.program, *inputs)[following.leaders[0]])
    (slot,) = following.direct
    gate = 1 / (1 + np.exp(-np.asarray(inputs[2 + slot])))
    np.testing.assert_allclose(jacobian, gate * (1 - np.tanh(new) ** 2), rtol=1e-5)
    np.testing.assert_allclose(F[slot][0], gate * (1 - gate) * np.tanh(new), rtol=1e-5)
    assert F[1 - slot][0].value == 0
