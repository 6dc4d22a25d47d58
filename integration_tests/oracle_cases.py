"""The models of the oracle tests: neurons, resets, layers, and every way to use a weight."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from oracles import Case, View

I, H, O = 3, 4, 2
CELL, STEP = ("cell",), ("step",)


def weight(*shape: int, seed: int = 0, scale: float = 0.6) -> np.ndarray:
    return scale * np.random.default_rng([seed, *shape]).normal(size=shape)


def smooth(v: jax.Array) -> jax.Array:
    """A spike one can differentiate."""
    return jax.nn.sigmoid(4.0 * v)


@jax.custom_vjp
def spike(v: jax.Array) -> jax.Array:
    """A spike with a surrogate gradient."""
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g / (1.0 + 4.0 * v * v),))


def join(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts, -1)


# One group


def synapse_membrane(o: View, p: Any, h: Any, x: Any) -> Any:
    past = o.memory(h, "cell")
    g = 0.8 * past["g"] + o.matmul(x, p["w"])
    v = 0.9 * past["v"] + g
    return {"g": g, "v": v}, v + 0.3 * g


def soft_reset(o: View, p: Any, h: Any, x: Any) -> Any:
    past = o.memory(h, "cell")
    v = 0.9 * past["v"] - 0.5 * spike(past["v"] - 0.2) + o.matmul(x, p["w"], p["b"])
    return {"v": v}, o.matmul(spike(v - 0.2), p["out"])


def hard_reset(o: View, p: Any, h: Any, x: Any) -> Any:
    past = o.memory(h, "cell")
    g = 0.8 * past["g"] + o.matmul(x, p["w"])
    v = 0.9 * past["v"] * (1.0 - smooth(past["v"] - 0.2)) + g
    return {"g": g, "v": v}, smooth(v - 0.2)


def read_before_reset(o: View, p: Any, h: Any, x: Any) -> Any:
    charged = 0.9 * o.memory(h["v"], "cell") + o.matmul(x, p["w"])
    s = spike(charged - 0.3)
    return {"v": charged * (1.0 - s)}, s


def recurrent_read_before_reset(o: View, p: Any, h: Any, x: Any) -> Any:
    fed = join(x, smooth(o.recurrent(h["v"]) - 0.1))
    charged = 0.9 * o.memory(h["v"], "cell") + o.matmul(fed, p["w"])
    s = smooth(charged - 0.3)
    return {"v": charged * (1.0 - s)}, o.matmul(s, p["out"])


def recurrent_soft_reset(o: View, p: Any, h: Any, x: Any) -> Any:
    past, s = o.memory(h, "cell"), spike(o.recurrent(h["v"]) - 0.1)
    g = 0.7 * past["g"] + o.matmul(x, p["w"]) + o.matmul(s, p["r"])
    v = 0.9 * past["v"] - 0.5 * spike(past["v"] - 0.1) + g
    return {"g": g, "v": v}, o.matmul(spike(v - 0.1), p["out"], p["b"])


def three_chained(o: View, p: Any, h: Any, x: Any) -> Any:
    past = o.memory(h, "cell")
    y = o.matmul(join(x, smooth(o.recurrent(h["v"]) - 0.2)), p["w"])
    g = 0.8 * past["g"] + y
    v = 0.9 * past["v"] * (1.0 - smooth(past["v"] - 0.2)) + g
    a = 0.95 * past["a"] + smooth(v - 0.2)
    return {"g": g, "v": v, "a": a}, o.matmul(smooth(v - 0.1 * a), p["out"])


def read_of_the_past(o: View, p: Any, h: Any, x: Any) -> Any:
    """The readout sees the state before the step: an operation that does not lead back is not cut."""
    past = o.memory(h["v"], "cell")
    v = 0.9 * past + o.matmul(join(x, jnp.tanh(o.recurrent(h["v"]))), p["w"])
    return {"v": v}, o.matmul(jnp.tanh(past), p["out"]) + v[..., :O]


def fused_gates(o: View, p: Any, h: Any, x: Any) -> Any:
    past = o.memory(h, "cell")
    y = o.matmul(join(x, o.recurrent(h["h"])), p["w"], p["b"])
    i, f, g, u = jnp.split(y, 4, axis=-1)
    c = jax.nn.sigmoid(f) * past["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"c": c, "h": jax.nn.sigmoid(u) * jnp.tanh(c)}, jax.nn.sigmoid(u) * jnp.tanh(c)


def moved_positions(o: View, p: Any, h: Any, x: Any) -> Any:
    """The state is a roll of one operation, a permutation of another, and takes a few units of a third."""
    y = jnp.roll(o.matmul(x, p["w"]), 1, -1) + o.matmul(jnp.tanh(x), p["u"])[..., np.array([2, 0, 3, 1])]
    part = o.matmul(x, p["k"])
    y = y + join(part, jnp.zeros_like(part[..., :1]), part[..., :1])
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(y)
    return {"v": v}, v


def marked_decay(o: View, p: Any, h: Any, x: Any) -> Any:
    decay = jax.nn.sigmoid(o.element_wise(p["tau"]))
    drive = o.element_wise(p["gain"]) * o.matmul(x, p["w"])
    v = decay * o.memory(h["v"], "cell") + jnp.tanh(drive)
    return {"v": v}, v


def plain_decay(o: View, p: Any, h: Any, x: Any) -> Any:
    """A parameter that drives the state without a mark: its credit ends with the step."""
    v = jax.nn.sigmoid(p["tau"]) * o.memory(h["v"], "cell") + o.matmul(x, p["w"])
    return {"v": v}, v * p["scale"]


def residual(o: View, p: Any, h: Any, x: Any) -> Any:
    """Two layers in one group: the first reaches the second position by position, and through an operation."""
    drive = o.matmul(x, p["w1"])
    a = 0.9 * o.memory(h["a"], "cell") + drive
    entering = jnp.tanh(0.9 * o.recurrent(h["a"]) + o.crossing(drive))
    b = 0.7 * o.memory(h["b"], "cell") + 0.5 * a + o.matmul(entering, p["w2"])
    return {"a": a, "b": b}, b


# Positions


def scalar_gain(o: View, p: Any, h: Any, x: Any) -> Any:
    """One number for all units, without an axis."""
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(o.element_wise(p["gain"]) * o.matmul(x, p["w"]))
    return {"v": v}, v


def two_states_of_a_group(o: View, p: Any, h: Any, x: Any) -> Any:
    """One output drives two states that meet position by position."""
    past, y = o.memory(h, "cell"), o.matmul(x, p["w"])
    a = 0.9 * past["a"] * (1.0 - smooth(past["b"])) + y
    b = 0.7 * past["b"] + jnp.tanh(y) + 0.2 * a
    return {"a": a, "b": b}, a * b


def two_groups(o: View, p: Any, h: Any, x: Any) -> Any:
    """One output drives two states that do not meet."""
    y = o.matmul(x, p["w"])
    a = 0.9 * o.memory(h["a"], "one") + jnp.tanh(o.use(y, "one"))
    b = 0.5 * jnp.tanh(o.memory(h["b"], "two")) + o.use(y, "two")
    return {"a": a, "b": b}, a * jnp.tanh(b)


def other_shapes(o: View, p: Any, h: Any, x: Any) -> Any:
    """States of other sizes, of which one takes a part of an output, in another order, and one all of it."""
    y = o.matmul(x, p["w"])
    wide = 0.9 * o.memory(h["wide"], "one") + jnp.tanh(o.use(y, "one"))
    narrow = 0.7 * jnp.tanh(o.memory(h["narrow"], "two")) + o.use(y, "two")[..., ::-1][..., :O]
    return {"wide": wide, "narrow": narrow}, join(wide, narrow) ** 2


# Several groups


def two_layers(o: View, p: Any, h: Any, x: Any) -> Any:
    charged = 0.9 * o.memory(h["a"], "one") + o.matmul(join(x, smooth(o.recurrent(h["a"]))), p["w1"])
    s = smooth(charged - 0.3)
    g = 0.7 * o.memory(h["b"], "two") + o.matmul(join(s, smooth(o.recurrent(h["b"]))), p["w2"])
    r = smooth(g - 0.3)
    return {"a": charged * (1.0 - s), "b": g * (1.0 - r)}, o.matmul(r, p["out"]) + 0.1 * s[..., :O]


def top_down(o: View, p: Any, h: Any, x: Any) -> Any:
    """Both layers see both: every path from a layer to itself through an operation is cut."""
    recurrent = o.recurrent(h)
    a = 0.9 * o.memory(h["a"], "one") + o.matmul(join(x, jnp.tanh(recurrent["a"]), recurrent["b"]), p["w1"])
    b = 0.8 * o.memory(h["b"], "two") + o.matmul(join(jnp.tanh(a), recurrent["b"]), p["w2"])
    return {"a": a, "b": jnp.tanh(b)}, jnp.tanh(b)


def layer_after_layer(o: View, p: Any, h: Any, x: Any) -> Any:
    a = 0.9 * o.memory(h["a"], "one") + o.matmul(x, p["w1"])
    b = 0.8 * jnp.tanh(o.memory(h["b"], "two")) + o.matmul(jnp.tanh(a), p["w2"])
    return {"a": a, "b": b}, b


def shared_by_layers(o: View, p: Any, h: Any, x: Any) -> Any:
    a = 0.8 * o.memory(h["a"], "one") + o.matmul(join(x, x[..., :1]), o.use(p["w"], "one"))
    b = 0.7 * o.memory(h["b"], "two") + jnp.tanh(o.matmul(jnp.tanh(a), o.use(p["w"], "two")))
    return {"a": a, "b": b}, b


# Ways to use a weight


def _leaky(make: Callable[[Any], Any]) -> Callable[..., Any]:
    """A leaky recurrent layer with the weight `make(params)`."""

    def step(o: View, p: Any, h: Any, x: Any) -> Any:
        y = o.matmul(join(x, o.recurrent(h["v"])), make(p))
        v = 0.8 * o.memory(h["v"], "cell") + 0.5 * jnp.tanh(y)
        return {"v": v}, v

    return step


def used_twice(o: View, p: Any, h: Any, x: Any) -> Any:
    y = o.matmul(x, p["w"]) + o.matmul(jnp.tanh(x + 1.0), 0.5 * p["w"])
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(y)
    return {"v": v}, v


def marked_and_plain(o: View, p: Any, h: Any, x: Any) -> Any:
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(o.matmul(x, o.use(p["w"], "cell")))
    return {"v": v}, v * (1.0 + jnp.tanh(o.use(p["w"], "step")).sum())


def partially_shared(o: View, p: Any, h: Any, x: Any) -> Any:
    """Two operations use overlapping parts of one parameter."""
    y = o.matmul(x, p["w"][:, :H]) + o.matmul(jnp.tanh(x), p["w"][:, 1:])
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(y)
    return {"v": v}, v


def time_varying(o: View, p: Any, h: Any, x: Any) -> Any:
    """A weight that the data changes: its credit ends with the step, that of the other does not."""
    moving = p["w"] * (1.0 + jnp.tanh(x).mean())
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(o.matmul(x, moving) + o.matmul(x, p["u"]))
    return {"v": v}, v


MASK = np.random.default_rng(5).integers(0, 2, (I + H, H)).astype(float)
USES: dict[str, tuple[Callable[[Any], Any], dict[str, np.ndarray]]] = {
    "scaled": (lambda p: 2.0 * p["w"], {"w": weight(I + H, H)}),
    "exponential": (lambda p: jnp.exp(p["w"]) - 1.0, {"w": weight(I + H, H)}),
    "transposed": (lambda p: p["w"].T, {"w": weight(H, I + H)}),
    "sliced": (lambda p: p["w"][:, :H], {"w": weight(I + H, 2 * H)}),
    "masked": (lambda p: jnp.asarray(MASK, p["w"].dtype) * p["w"], {"w": weight(I + H, H)}),
    "masked by where": (lambda p: jnp.where(MASK > 0, p["w"], 0.1), {"w": weight(I + H, H)}),
    "product": (lambda p: p["w"] * p["u"], {"w": weight(I + H, H), "u": weight(I + H, H, seed=1)}),
    "signed": (lambda p: jnp.abs(p["w"]) * np.sign(MASK - 0.5).astype(p["w"].dtype), {"w": weight(I + H, H)}),
    "standardised": (
        lambda p: (p["w"] - p["w"].mean(0)) / jnp.sqrt(p["w"].var(0) + 0.1) * p["s"],
        {"w": weight(I + H, H), "s": 1.0 + weight(H)},
    ),
    "factored": (lambda p: p["w"] @ p["u"], {"w": weight(I + H, 2), "u": weight(2, H)}),
    "stacked": (lambda p: jnp.concatenate([p["w"], p["u"]]), {"w": weight(I, H), "u": weight(H, H)}),
}

V = {"v": H}
GV = {"g": H, "v": H}
AB = {"a": H, "b": H}

NEURONS = [
    Case("synapse feeding a membrane", {"w": weight(I, H)}, GV, synapse_membrane, {"w": CELL}, exact=True),
    Case(
        "soft reset",
        {"w": weight(I, H), "b": weight(H), "out": weight(H, O)},
        V,
        soft_reset,
        {"w": CELL, "b": CELL, "out": STEP},
        exact=True,
    ),
    Case("hard reset", {"w": weight(I, H)}, GV, hard_reset, {"w": CELL}, exact=True),
    Case("spike read before the reset", {"w": weight(I, H)}, V, read_before_reset, {"w": CELL}, exact=True),
    Case(
        "recurrent, read before the reset",
        {"w": weight(I + H, H), "out": weight(H, O)},
        V,
        recurrent_read_before_reset,
        {"w": CELL, "out": STEP},
    ),
    Case(
        "recurrent, soft reset",
        {"w": weight(I, H), "r": weight(H, H), "out": weight(H, O), "b": weight(O)},
        GV,
        recurrent_soft_reset,
        {"w": CELL, "r": CELL, "out": STEP, "b": STEP},
    ),
    Case(
        "three chained states",
        {"w": weight(I + H, H), "out": weight(H, O)},
        {"g": H, "v": H, "a": H},
        three_chained,
        {"w": CELL, "out": STEP},
    ),
    Case(
        "readout of the past",
        {"w": weight(I + H, H), "out": weight(H, O)},
        V,
        read_of_the_past,
        {"w": CELL, "out": STEP},
    ),
    Case(
        "fused gates",
        {"w": weight(I + H, 4 * H), "b": weight(4 * H)},
        {"c": H, "h": H},
        fused_gates,
        {"w": CELL, "b": CELL},
    ),
    Case(
        "moved positions",
        {"w": weight(I, H), "u": weight(I, H, seed=1), "k": weight(I, H - 2)},
        V,
        moved_positions,
        {"w": CELL, "u": CELL, "k": CELL},
        exact=True,
    ),
    Case(
        "marked decay and gain",
        {"w": weight(I, H), "tau": weight(H), "gain": 1.0 + weight(1)},
        V,
        marked_decay,
        {"w": CELL, "tau": CELL, "gain": CELL},
        exact=True,
    ),
    Case(
        "plain decay",
        {"w": weight(I, H), "tau": weight(H), "scale": weight(H, seed=2)},
        V,
        plain_decay,
        {"w": CELL, "tau": STEP, "scale": STEP},
    ),
    Case(
        "residual in one group",
        {"w1": weight(I, H), "w2": weight(H, H)},
        AB,
        residual,
        {"w1": CELL, "w2": CELL},
    ),
]

POSITIONS = [
    Case("scalar gain", {"w": weight(I, H), "gain": weight()}, V, scalar_gain, {"w": CELL, "gain": CELL}, exact=True),
    Case("one output, two states", {"w": weight(I, H)}, AB, two_states_of_a_group, {"w": CELL}, exact=True),
    Case("one output, two groups", {"w": weight(I, H)}, AB, two_groups, {"w": ("one", "two")}, exact=True),
    Case(
        "states of other sizes",
        {"w": weight(I, H)},
        {"wide": H, "narrow": O},
        other_shapes,
        {"w": ("one", "two")},
        exact=True,
    ),
]

LAYERS = [
    Case(
        "two recurrent layers",
        {"w1": weight(I + H, H), "w2": weight(2 * H, H), "out": weight(H, O)},
        AB,
        two_layers,
        {"w1": ("one",), "w2": ("two",), "out": STEP},
    ),
    Case(
        "top-down",
        {"w1": weight(I + 2 * H, H), "w2": weight(2 * H, H)},
        AB,
        top_down,
        {"w1": ("one",), "w2": ("two",)},
    ),
    Case(
        "layer after layer",
        {"w1": weight(I, H), "w2": weight(H, H)},
        AB,
        layer_after_layer,
        {"w1": ("one",), "w2": ("two",)},
    ),
]

WEIGHTS = [
    *(Case(name, params, V, _leaky(make), dict.fromkeys(params, CELL)) for name, (make, params) in USES.items()),
    Case("used twice", {"w": weight(I, H)}, V, used_twice, {"w": CELL}, exact=True),
    Case("partially shared", {"w": weight(I, H + 1)}, V, partially_shared, {"w": CELL}, exact=True),
    Case("time-varying", {"w": weight(I, H), "u": weight(I, H, seed=1)}, V, time_varying, {"w": STEP, "u": CELL}),
    Case("marked and plain", {"w": weight(I, H)}, V, marked_and_plain, {"w": ("cell", "step")}, exact=True),
    Case("shared by layers", {"w": weight(H, H)}, AB, shared_by_layers, {"w": ("one", "two")}),
]

HIDDEN_LOSS = [
    case._replace(name=f"penalty, {case.name}", penalty=0.7, exact=case.exact)
    for case in (NEURONS[0], NEURONS[6], LAYERS[0])
]

CASES = {case.name: case for case in (*NEURONS, *POSITIONS, *LAYERS, *WEIGHTS, *HIDDEN_LOSS)}
