"""Index propagation, held to the sparsity pattern of the true Jacobian."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from braintrace_compiler._positions import MANY, NONE, Constants, propagate_sources, propagate_targets
from braintrace_primitives._jax_compat import build_jaxpr, make_jaxpr_without_consts

B, H = 2, 3


def program(function, *args):
    """The jaxpr of `function`, the values of its constants by variable, and the number of constants."""
    jaxpr, consts = make_jaxpr_without_consts(jax.make_jaxpr(function)(*args))
    return jaxpr, dict(zip(jaxpr.invars, consts, strict=False)), len(consts)


def numbered(shape):
    return np.arange(int(np.prod(shape))).reshape(shape)


def targets(function, *args, labels=None):
    """Per argument the labels of its elements; by default every output element is a target of its own."""
    jaxpr, known, lead = program(function, *args)
    labels = labels or [numbered(v.aval.shape) for v in jaxpr.outvars]
    return propagate_targets(jaxpr, labels, known=known)[lead:]


def sources(function, *args):
    """Labels of every output element, where every element of the first argument is a source of its own."""
    jaxpr, known, lead = program(function, *args)
    labels = [None] * lead + [numbered(np.shape(args[0]))] + [None] * (len(args) - 1)
    return propagate_sources(jaxpr, labels, known=known)


def pattern(function, arg):
    """Nonzeros of the Jacobian of a one-output function, as (output element, input element)."""
    jacobian = jax.jit(jax.jacrev(function))(arg)
    return np.asarray(jacobian).reshape(-1, np.size(arg)) != 0


def assert_sound(function, arg):
    """No label may deny a derivative that is there."""
    nonzero = pattern(function, arg)
    (fed,) = targets(function, arg)
    for element, label in enumerate(fed.reshape(-1)):
        rows = set(np.flatnonzero(nonzero[:, element]))
        assert label == MANY or rows <= {label}, (element, label, rows)
    (come,) = sources(function, arg)
    for element, label in enumerate(come.reshape(-1)):
        columns = set(np.flatnonzero(nonzero[element]))
        assert label == MANY or columns <= {label}, (element, label, columns)


def assert_exact(function, arg):
    """The labels say precisely what the nonzeros of the Jacobian say."""
    nonzero = pattern(function, arg)

    def label(hits):
        hits = np.flatnonzero(hits)
        return NONE if len(hits) == 0 else int(hits[0]) if len(hits) == 1 else MANY

    (fed,) = targets(function, arg)
    np.testing.assert_array_equal(fed.reshape(-1), [label(column) for column in nonzero.T])
    (come,) = sources(function, arg)
    np.testing.assert_array_equal(come.reshape(-1), [label(row) for row in nonzero])


def matrix(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.5, 1.5, shape or (B, H)), jnp.float32)


@jax.custom_vjp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g / (1.0 + v * v),))


@jax.custom_jvp
def soft_floor(v):
    return jnp.floor(v)


soft_floor.defjvp(lambda primals, tangents: (soft_floor(*primals), tangents[0] * jnp.cos(primals[0])))


@jax.custom_vjp
def normalised_gradient(x):
    return x * 1.0


normalised_gradient.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.sqrt((g * g).sum() + 1.0),))


@jax.custom_vjp
def gain(x, scale):
    return x * scale


gain.defvjp(lambda x, s: (x * s, (x, s)), lambda r, g: (g * r[1], (g * r[0]).sum(0)))

PERMUTATION = np.array([2, 0, 1])

EXACT = {
    "identity": lambda x: x,
    "element-wise chain": lambda x: jnp.tanh(x) * x + jax.nn.sigmoid(2.0 * x) ** 3,
    "relu": jax.nn.relu,
    "roll": lambda x: jnp.roll(x, 1, -1),
    "transpose": lambda x: x.T,
    "reshape": lambda x: x.reshape(H, B),
    "slice": lambda x: x[:, 1:],
    "strided slice": lambda x: x[:, ::2],
    "reverse": lambda x: x[::-1],
    "new axis": lambda x: x[:, None, :],
    "static gather": lambda x: x[:, PERMUTATION],
    "static gather with a repeat": lambda x: x[:, jnp.array([0, 0, -1])],
    "take": lambda x: jnp.take(x, jnp.array([1, 2]), axis=1),
    "dynamic slice at a constant": lambda x: jax.lax.dynamic_slice(x, (jnp.int32(1), 9), (1, 2)),
    "dynamic update at a constant": lambda x: jax.lax.dynamic_update_slice(x, 2.0 * x[:, :1], (0, jnp.int32(2))),
    "scatter": lambda x: jnp.zeros((B, 5)).at[:, jnp.array([4, 1, 0])].set(x),
    "scatter over": lambda x: x.at[:, 1].set(x[:, 0] * 2.0),
    "scatter add": lambda x: jnp.zeros((B, 5)).at[:, 1:4].add(x),
    "pad": lambda x: jax.lax.pad(x, 0.0, ((1, 0, 1), (-1, 2, 0))),
    "pad with a value": lambda x: jax.lax.pad(x[1, :2], x[0, 0], ((1, 0, 1),)),
    "concatenate": lambda x: jnp.concatenate([x[:, 2:], x[:, :2]], -1),
    "stack": lambda x: jnp.stack([x[0], x[1] * 2.0], 1),
    "unstack": lambda x: jnp.stack(list(jnp.unstack(x, axis=1))[::-1], 1),
    "tile": lambda x: jnp.tile(x[:, :1], (1, 4)),
    "repeat": lambda x: jnp.repeat(x[:, :1], 4, axis=1),
    "broadcast": lambda x: jnp.broadcast_to(x[0], (4, H)),
    "sum over an axis": lambda x: x.sum(1),
    "max over an axis": lambda x: jnp.max(x[None, :1], 0),
    "product over an axis": lambda x: jnp.prod(x, 0),
    "LayerNorm": lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "mask from data": lambda x: jnp.where(x > 0, x, 0.0),
    "clip": lambda x: jnp.clip(x, 0.0, 2.0),
    "rounding": lambda x: jnp.round(x),
    "stop_gradient": lambda x: jax.lax.stop_gradient(x),
    "to integer and back": lambda x: x.astype(jnp.int32).astype(jnp.float32),
    "complex parts": lambda x: jnp.real(jax.lax.complex(x, x) * jnp.exp(1j * jnp.ones(H))),
    "jit": jax.jit(lambda x: jnp.roll(x, 1, 0)),
    "jit with a static index inside": lambda x: jax.jit(lambda a, i: a[:, i])(x, jnp.array([1, 0])),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x[:, ::-1])),
    "cond": lambda x: jax.lax.cond(x[0, 0] > 9.0, lambda a: a * 3.0, lambda a: a + 1.0, x),
    "surrogate spike": lambda x: spike(x - 1.0),
    "custom_jvp through a rounding": soft_floor,
    "vmapped surrogate": jax.vmap(spike),
    "einsum as a gain": lambda x: jnp.einsum("bh,h->bh", x, jnp.arange(1.0, 4.0)),
    "einsum over compartments": lambda x: jnp.einsum("bh,h->b", x, jnp.arange(1.0, 4.0)),
    "outer product": lambda x: jnp.outer(x[0], jnp.arange(1.0, 3.0)),
    "dense": lambda x: x @ jnp.ones((H, 4)),
    "dense with one output": lambda x: x @ jnp.ones((H, 1)),
    "cumulative sum": lambda x: jnp.cumsum(x[0]) + jnp.cumsum(x[0, ::-1])[::-1],
    "barrier": lambda x: jax.lax.optimization_barrier((x, 2.0 * x))[1],
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_where_structure_is_visible(name):
    assert_exact(EXACT[name], matrix())


def test_fused_gates():
    def lstm_tail(y, c):
        i, g, f, o = jnp.split(y, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    positions = numbered((B, H))
    y, c = targets(lstm_tail, matrix(B, 4 * H), matrix(), labels=[positions, positions])
    np.testing.assert_array_equal(y, np.concatenate([positions] * 4, -1))
    np.testing.assert_array_equal(c, positions)
    # the two states seen as different targets: what makes c feeds both, the output gate only h
    y, c = targets(lstm_tail, matrix(B, 4 * H), matrix(), labels=[positions, positions + 10])
    np.testing.assert_array_equal(c, np.full((B, H), MANY))
    np.testing.assert_array_equal(y[:, 3 * H :], positions)
    assert (y[:, : 3 * H] == MANY).all()


def test_scalar_and_row_gains():
    def scaled(x, one, scalar, row):
        return x * one + scalar * x + row

    x, one, scalar, row = targets(scaled, matrix(), matrix(1), matrix()[0, 0], matrix(H))
    np.testing.assert_array_equal(x, numbered((B, H)))
    assert one.shape == (1,)
    assert one == MANY
    assert scalar == MANY
    assert (row == MANY).all()
    jaxpr, _, _ = program(scaled, matrix(), matrix(1), matrix()[0, 0], matrix(H))
    for k, (shape, expected) in enumerate(
        [((B, H), numbered((B, H))), ((1,), np.zeros((B, H))), ((), np.zeros((B, H))), ((H,), [range(H)] * B)]
    ):
        labels = [None] * 4
        labels[k] = numbered(shape)
        np.testing.assert_array_equal(propagate_sources(jaxpr, labels)[0], expected)


def test_a_constant_mask():
    mask = jnp.array([True, False, True])
    (x,) = targets(lambda x: jnp.where(mask, x, 0.0), matrix())
    np.testing.assert_array_equal(x, numbered((B, H)))


def test_a_rule_that_mixes_cotangents():
    (x,) = targets(normalised_gradient, matrix())
    assert (x == MANY).all()


def test_one_position_absorbs_mixing():
    (x,) = targets(lambda x: jnp.cumsum(x)[-1:], matrix(H))
    np.testing.assert_array_equal(x, np.zeros(H))


def test_a_custom_rule_with_several_operands():
    x, scale = targets(gain, matrix(), matrix(H))
    np.testing.assert_array_equal(x, numbered((B, H)))
    assert (scale == MANY).all()
    jaxpr, _, _ = program(gain, matrix(), matrix(H))
    np.testing.assert_array_equal(propagate_sources(jaxpr, [None, np.arange(H)])[0], [range(H)] * B)


def test_unknown_indices_mix():
    def pick(x, i):
        return x[i]

    assert (targets(pick, matrix(H), jnp.array([0, 2]))[0] == MANY).all()
    jaxpr, _, _ = program(pick, matrix(H), jnp.array([0, 2]))
    (fed, _) = propagate_targets(jaxpr, [np.arange(2)], known={jaxpr.invars[1]: np.array([0, 2])})
    np.testing.assert_array_equal(fed, [0, NONE, 1])


def test_a_slice_knows_the_constants_of_its_program():
    whole, known, lead = program(lambda x: x[:, PERMUTATION] * 2.0, matrix())
    gather = next(eqn for eqn in whole.eqns if eqn.primitive.name == "gather")
    indices = gather.invars[1]
    part = build_jaxpr([whole.invars[lead], indices], gather.outvars, [gather], like=whole)
    assert (propagate_targets(part, [numbered((B, H))])[0] == MANY).all()
    (fed, _) = propagate_targets(part, [numbered((B, H))], known=Constants(whole, known))
    np.testing.assert_array_equal(fed, numbered((B, H))[:, np.argsort(PERMUTATION)])


def test_unknown_starts_mix():
    def update(x, part, i):
        return jax.lax.dynamic_update_slice(x, part, (i,))

    x, part, _ = targets(update, matrix(H), matrix(1), jnp.int32(1))
    np.testing.assert_array_equal(x, range(H))
    assert part == MANY
    (x, _) = targets(lambda x, i: jax.lax.dynamic_slice(x, (i,), (2,)), matrix(H), jnp.int32(1))
    assert (x == MANY).all()


def test_scatter_with_meeting_updates_mixes_them():
    where = jnp.array([1, 1])
    x, part = targets(lambda x, part: x.at[where].set(part), matrix(H), matrix(2))
    np.testing.assert_array_equal(x, [0, NONE, 2])
    assert (part == MANY).all()
    x, part = targets(lambda x, part: x.at[where].add(part), matrix(H), matrix(2))
    np.testing.assert_array_equal(x, range(H))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.sort(x),
        lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real,
        lambda x: jnp.linalg.solve(jnp.eye(H), x),
        lambda x: jnp.convolve(x, jnp.ones(2), mode="same"),
    ],
)
def test_what_is_not_understood_mixes(function):
    (x,) = targets(function, matrix(H))
    assert (x == MANY).all()


def test_no_labels_without_targets():
    def two(x):
        return x * 2.0, jnp.sum(x)

    (x,) = targets(two, matrix(), labels=[None, None])
    assert (x == NONE).all()
    (x,) = targets(two, matrix(), labels=[np.where(numbered((B, H)) == 4, 4, NONE), None])
    np.testing.assert_array_equal(x, np.where(numbered((B, H)) == 4, 4, NONE))


def test_integer_inputs_and_outputs_carry_nothing():
    table = matrix(4, H)
    rows, index = targets(lambda table, i: table[i], table, jnp.array([1, 1]))
    assert rows.shape == (4, H)
    assert (index == NONE).all()
    assert (sources(lambda x: jnp.argmax(x, -1), matrix())[0] == NONE).all()


def test_works_inside_a_trace():
    found = []

    @jax.jit
    def outer(x):
        found.extend(targets(lambda a: spike(a[PERMUTATION]), matrix(H)))
        return x

    outer(1.0)
    np.testing.assert_array_equal(found[0], np.argsort(PERMUTATION))


def test_empty_arrays():
    (x,) = targets(lambda x: x[:, :0].sum(1), matrix())
    assert (x == NONE).all()
    (x,) = targets(lambda x: jnp.concatenate([x[:0], x]), matrix(H))
    np.testing.assert_array_equal(x, range(H))


def test_time_grows_linearly():
    def long(x):
        for _ in range(3000):
            x = jnp.tanh(x) + x
        return x

    (x,) = targets(long, matrix(H))
    np.testing.assert_array_equal(x, range(H))


# Random programs: a list of steps, each from one array to the next.
UNARY = {
    "tanh": jnp.tanh,
    "square": lambda x: x * x,
    "scaled": lambda x: 2.0 * x - 0.5,
    "spike": lambda x: spike(x - 0.7),
    "relu": jax.nn.relu,
    "rounded": jnp.round,
    "transpose": lambda x: x.T,
    "flip": lambda x: x[::-1],
    "roll": lambda x: jnp.roll(x, 1, axis=0),
    "flat": lambda x: x.reshape(-1),
    "tail": lambda x: x[1:],
    "head": lambda x: x[:2],
    "pick": lambda x: x[jnp.arange(x.shape[0])[::-1]],
    "rows": lambda x: jnp.stack([x, x * 3.0]),
    "gates": lambda x: jnp.prod(jnp.stack(jnp.split(x, x.shape[-1], axis=-1)), 0),
    "sum": lambda x: x.sum(0),
    "mean kept": lambda x: x.mean(-1, keepdims=True),
    "max": lambda x: jnp.max(x, -1),
    "pad": lambda x: jnp.pad(x, 1),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "cumsum": lambda x: jnp.cumsum(x, 0),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) + x),
    "set": lambda x: x.at[0].set(0.3),
    "first added": lambda x: x.at[-1].add(x[0]),
    "gain": lambda x: x * x.reshape(-1)[0],
    "dense": lambda x: x @ jnp.ones((x.shape[-1], 2)),
    "outer": lambda x: jnp.einsum("...i,j->...ij", x, jnp.arange(1.0, 3.0)),
}
BINARY = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "select": lambda x, y: jnp.where(x > y, x, 2.0 * y),
    "join": lambda x, y: jnp.concatenate([x.reshape(-1), y.reshape(-1)]),
}


@st.composite
def programs(draw):
    steps = draw(st.lists(st.sampled_from([*UNARY, *BINARY]), min_size=1, max_size=6))
    return tuple((name, draw(st.integers(0, 5))) for name in steps)


def run(steps, x):
    made = [x]
    for name, which in steps:
        last, other = made[-1], made[which % len(made)]
        if name in BINARY:
            try:
                shape = np.broadcast_shapes(last.shape, other.shape)
            except ValueError:
                continue
            result = BINARY[name](jnp.broadcast_to(last, shape), jnp.broadcast_to(other, shape))
        elif last.ndim == 0 or last.shape[0] < 2 or last.size > 48:
            continue
        else:
            result = UNARY[name](last)
        made.append(result)
    return made[-1]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs_are_never_misread(steps):
    assert_sound(functools.partial(run, steps), matrix(3, 2, seed=1))


@pytest.mark.parametrize("label", [NONE, 0])
def test_the_soundness_check_can_fail(label, monkeypatch):
    monkeypatch.setitem(globals(), "targets", lambda function, arg: [np.full(np.shape(arg), label)])
    with pytest.raises(AssertionError):
        assert_sound(jnp.tanh, matrix())


LOOPED = {
    "element-wise": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: 0.5 * c + jnp.sin(x), x),
    "long": lambda x: jax.lax.fori_loop(0, 1000, lambda i, c: 0.5 * c + jnp.sin(x), x),
    "roll": lambda x: jax.lax.fori_loop(0, 2, lambda i, c: jnp.roll(c, 1), x),
    "scanned": lambda x: jax.lax.scan(lambda c, row: (c + row, None), jnp.zeros(H), x.reshape(1, H))[0],
    "stacked": lambda x: jax.lax.scan(lambda c, _: (0.5 * c, c), x, None, length=3, reverse=True)[1].sum(0),
    "nested": lambda x: jax.lax.fori_loop(0, 2, lambda i, c: jax.lax.fori_loop(0, 2, lambda j, d: d * x, c), x),
}


@pytest.mark.parametrize("name", LOOPED)
def test_loops_are_followed(name):
    arg = jnp.array([0.3, -0.7, 1.1])
    assert_sound(LOOPED[name], arg)
    (fed,) = targets(LOOPED[name], arg)
    (come,) = sources(LOOPED[name], arg)
    assert (fed != MANY).all()
    assert (come != MANY).all()


def test_a_running_sum():
    (fed,) = targets(lambda x: jax.lax.scan(lambda c, a: (c + a, c), 0.0, x)[1], jnp.ones(H))
    assert fed.tolist() == [MANY, 2, NONE]


def test_loops_that_mix():
    for length in (2, 100):
        (fed,) = targets(lambda x, n=length: jax.lax.fori_loop(0, n, lambda i, c: c + jnp.roll(c, 1), x), jnp.ones(H))
        assert (fed == MANY).all()


def test_while_loops_join_their_iterations():
    def still(x):
        return jax.lax.while_loop(lambda c: c.sum() < 10, lambda c: 1.5 * c + x, x)

    def moving(x):
        return jax.lax.while_loop(lambda c: c.sum() < 10, lambda c: jnp.roll(c, 1) * 1.5, x)

    np.testing.assert_array_equal(targets(still, jnp.ones(H))[0], np.arange(H))
    np.testing.assert_array_equal(sources(still, jnp.ones(H))[0], np.arange(H))
    assert (targets(moving, jnp.ones(H))[0] == MANY).all()
