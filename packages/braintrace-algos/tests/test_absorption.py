"""Absorbed linear memory: against backpropagation through the model of which only the other memories are cut."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, EProp, MultiStepData, OSTLRecurrent, compile
from braintrace_primitives import element_wise, matmul

B, I, H, M, O, T = 3, 4, 5, 4, 2, 7
SIZES = {"w": (I, H), "u": (H, H), "out": (H, O), "mid": (H, M), "late": (M, O), "v": (I, H), "both": (2 * H, O)}
ORDER = np.array([2, 0, 3, 1])


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        yield


def normal(seed, *shape):
    return 0.6 * np.random.default_rng(seed).normal(size=shape)


class Operations:
    """The operations of a model: marked, or in plain JAX where the oracle wants h^{t-1} cut on its way into one."""

    def __init__(self, marked, cut=True):
        self.matmul = matmul if marked else lambda x, w: x @ w
        self.gain = element_wise if marked else lambda w: w
        self.recurrent = (lambda h: h) if marked or not cut else jax.lax.stop_gradient


def smooth_spike(v):
    return jax.nn.sigmoid(3.0 * (v - 0.2))


def layer(ops, p, s, x):
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    r = 0.9 * s["r"] + ops.matmul(jnp.tanh(h), p["out"])
    return {"h": h, "r": r}, r


def adaptive_spikes(ops, p, s, x):
    """The readout sees the spike before the reset, an adaptation follows it."""
    v = 0.8 * s["h"] + ops.matmul(x, p["w"]) - 0.5 * s["a"]
    z = smooth_spike(v)
    r = 0.6 * s["r"] + 0.4 * ops.matmul(z, p["out"])
    return {"h": v * (1.0 - z), "a": 0.9 * s["a"] + z, "r": r}, r


def recurrent(ops, p, s, x):
    h = jnp.tanh(0.5 * s["h"] + ops.matmul(x, p["w"]) + ops.matmul(ops.recurrent(s["h"]), p["u"]))
    r = 0.9 * s["r"] + ops.matmul(h, p["out"])
    return {"h": h, "r": r}, r


def synapse(ops, p, s, x):
    """Layer, current with one time constant, and a neuron that is not linear."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    g = 0.8 * s["g"] + ops.matmul(smooth_spike(h), p["mid"])
    m = 0.9 * jnp.tanh(s["m"]) + g
    return {"h": h, "g": g, "m": m}, ops.matmul(jnp.tanh(m), p["late"])


def chain(ops, p, s, x):
    """A readout of a readout."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    g = 0.8 * s["g"] + ops.matmul(jnp.tanh(h), p["mid"])
    r = 0.6 * s["r"] + ops.matmul(g, p["late"])
    return {"h": h, "g": g, "r": r}, r


def joined(ops, p, s, x):
    """One operation reads two layers, another one of them and the input."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    g = 0.4 * s["g"] * jnp.cos(s["g"]) + ops.matmul(x, p["v"])
    r = 0.9 * s["r"] + ops.matmul(jnp.concatenate([jnp.tanh(g), h**2], -1), p["both"])
    return {"h": h, "g": g, "r": r + 0.5 * ops.matmul(jnp.sin(h), p["out"])}, r


def delayed(ops, p, s, x):
    """The readout reads the previous spikes, and is read one step late itself."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    r = 0.9 * s["r"] + ops.matmul(jnp.tanh(s["h"]), p["out"])
    return {"h": h, "r": r}, jnp.tanh(s["r"])


def momentary(ops, p, s, x):
    """The layer itself has no memory."""
    h = jnp.tanh(ops.matmul(x, p["w"]))
    r = 0.9 * s["r"] + ops.matmul(h, p["out"])
    return {"h": h, "r": r}, r


def gained(ops, p, s, x):
    """A gain that is broadcast over the batch; the readout's positions are a permutation of the operation's."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.gain(p["gain"]) * x
    g = 0.8 * s["g"] + 2.0 * ops.matmul(jnp.tanh(h), p["square"])[..., ORDER]
    return {"h": h, "g": g}, jnp.tanh(g)


def double(ops, p, s, x):
    """A current and a potential, both linear."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    g = 0.8 * s["g"] + ops.matmul(jnp.tanh(h), p["mid"])
    m = 0.9 * s["m"] + 0.3 * g - 0.1 * s["g"]
    return {"h": h, "g": g, "m": m}, jnp.tanh(m)


def delay(ops, p, s, x):
    """The memory is one step long: k = 0."""
    h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
    return {"h": h, "r": ops.matmul(jnp.tanh(h), p["out"])}, jnp.tanh(s["r"])


CASES = {
    # name: (step, states, what is cut for the weights named)
    "layer": (layer, {"h": H, "r": O}, {"w": (), "out": ()}),
    "adaptive spikes": (adaptive_spikes, {"h": H, "a": H, "r": O}, {"w": (), "out": ()}),
    "recurrent": (recurrent, {"h": H, "r": O}, {"w": (), "u": (), "out": ()}),
    "synapse": (synapse, {"h": H, "g": M, "m": M}, {"w": ("m",), "mid": (), "late": ()}),
    "chain": (chain, {"h": H, "g": M, "r": O}, {"w": ("r",), "mid": (), "late": ()}),
    "joined": (joined, {"h": H, "g": H, "r": O}, {"w": (), "v": (), "both": (), "out": ()}),
    "delayed": (delayed, {"h": H, "r": O}, {"w": (), "out": ()}),
    "momentary": (momentary, {"h": H, "r": O}, {"w": (), "out": ()}),
    "gained": (gained, {"h": I, "g": M}, {"gain": (), "square": ()}),
    "double": (double, {"h": H, "g": M, "m": M}, {"w": (), "mid": ()}),
    "delay": (delay, {"h": H, "r": O}, {"w": (), "out": ()}),
}
SIZES |= {"gain": (I,), "square": (I, M)}


class Model(brainstate.nn.Module):
    def __init__(self, step, states, weights):
        super().__init__()
        self.step, self.sizes, self.names = step, states, tuple(weights)
        for k, name in enumerate(self.names):
            setattr(self, "p_" + name, brainstate.ParamState(jnp.asarray(normal(k, *SIZES[name]))))

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        for k, (name, size) in enumerate(self.sizes.items()):
            setattr(
                self, name, brainstate.HiddenState(jnp.asarray(np.broadcast_to(normal(20 + k, size), (*lead, size))))
            )

    def parameters(self):
        return {name: getattr(self, "p_" + name).value for name in self.names}

    def update(self, x):
        states = {name: getattr(self, name).value for name in self.sizes}
        new, out = self.step(Operations(True), self.parameters(), states, x)
        for name, value in new.items():
            getattr(self, name).value = value
        return out


def loss(out, y):
    return jnp.mean((out - y[..., : out.shape[-1]]) ** 2)


def data():
    return normal(10, T, B, I), normal(11, T, B, M)


def oracle(model, name, cut=(), cut_recurrence=True):
    """Backpropagation through time of the rewritten model, for one weight."""
    xs, ys = data()
    start = {k: jnp.broadcast_to(normal(20 + i, n), (B, n)) for i, (k, n) in enumerate(model.sizes.items())}

    def total(w):
        def step(s, xy):
            s = {k: jax.lax.stop_gradient(v) if k in cut else v for k, v in s.items()}
            new, out = model.step(Operations(False, cut_recurrence), {**model.parameters(), name: w}, s, xy[0])
            return new, loss(out, xy[1])

        return jax.lax.scan(step, start, (xs, ys))[1].sum()

    return jax.grad(total)(model.parameters()[name])


def learnt(model, algorithm=D_RTRL, **options):
    xs, ys = data()
    learner = compile(model, algorithm, xs[0], batch_size=B, **options)
    grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    return learner, {path[0].removeprefix("p_"): value for path, value in grads.items()}


def error(g, r):
    return float(jnp.abs(g - r).max() / jnp.abs(r).max())


@pytest.mark.parametrize("name", CASES)
def test_absorbed_memory_is_no_longer_cut(name):
    step, states, cuts = CASES[name]
    model = Model(step, states, cuts)
    learner, grads = learnt(model)
    told = sum(o["trace_bytes"] for o in learner.report.operations)
    assert told == sum(leaf.nbytes for leaf in jax.tree.leaves(learner.etraces.value))
    for weight, cut in cuts.items():
        assert error(grads[weight], oracle(model, weight, cut)) < 1e-10, weight
    for certificate in learner.graph.certificates(learner.plan.memories):
        omitted = {o.value for o in certificate.omissions} - {"recurrent mixing"}
        assert omitted == ({"downstream memory"} if cuts[certificate.operation.weight_path[0][2:]] else set())


@pytest.mark.parametrize("name", ["layer", "synapse", "chain", "double", "delay"])
def test_what_is_left_out_otherwise_is_large(name):
    step, states, cuts = CASES[name]
    model, below = Model(step, states, cuts), next(iter(cuts))
    learner, grads = learnt(model, absorb=False)
    assert not learner.plan.memories
    assert error(grads[below], oracle(model, below, cuts[below])) > 0.05


@pytest.mark.parametrize(
    "options",
    [{"fold": 1}, {"fold": 2}, {"vmap": True}, {"vjp_method": "multi-step", "window": 3}],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("name", ["adaptive spikes", "joined", "gained"])
def test_neither_folds_nor_windows_nor_mapped_copies_change_it(name, options):
    step, states, cuts = CASES[name]
    model = Model(step, states, cuts)
    _, grads = learnt(model, **options)
    for weight in cuts:
        assert error(grads[weight], oracle(model, weight)) < 1e-10, weight


@pytest.mark.parametrize("algorithm", [EProp, OSTLRecurrent])
def test_traces_that_meet_the_state_s_signal_absorb_in_windows_only(algorithm):
    step, states, cuts = CASES["layer"]
    model = Model(step, states, cuts)
    learner, grads = learnt(model, algorithm, vjp_method="multi-step", window=2)
    assert learner.plan.memories
    for weight in cuts:
        assert error(grads[weight], oracle(model, weight)) < 1e-10, weight
    # In single steps L^t holds the share of r^t that the absorbed memory would bring in once more.
    assert not learnt(model, algorithm)[0].plan.memories


@pytest.mark.parametrize("window", [1, 3])
def test_traces_that_follow_the_recurrence_absorb_nothing_behind_it(window):
    """A readout that remembers is left out then; without it, and with diagonal recurrence, nothing is."""
    step, states, cuts = CASES["recurrent"]
    model = Model(step, states, cuts)
    model.p_u.value = jnp.diag(jnp.linspace(-0.9, 0.9, H))
    learner, grads = learnt(model, OSTLRecurrent, vjp_method="multi-step", window=window)
    assert not learner.plan.memories
    assert "downstream memory" in str(learner.report)
    exact = Model(lambda ops, p, s, x: step(ops, p, {**s, "r": jnp.zeros((B, O))}, x), states, cuts)
    exact.p_u.value = model.p_u.value
    _, grads = learnt(exact, OSTLRecurrent, vjp_method="multi-step", window=window)
    for weight in cuts:
        assert error(grads[weight], oracle(exact, weight, cut_recurrence=False)) < 1e-10, weight


def test_a_window_over_the_whole_sequence_is_backpropagation():
    step, states, cuts = CASES["synapse"]
    model = Model(step, states, cuts)
    _, grads = learnt(model, vjp_method="multi-step", window=T)
    for weight in cuts:
        assert error(grads[weight], oracle(model, weight)) < 1e-10, weight


@pytest.mark.parametrize("K", [1, 3])
def test_calls_of_the_learner_itself_see_it_too(K):
    model, (xs, ys) = Model(*CASES["adaptive spikes"]), data()
    method = {} if K == 1 else {"vjp_method": "multi-step", "window": K}
    learner = compile(model, D_RTRL, xs[0], batch_size=B, **method)

    def total(xs, ys):
        return sum(loss(out, y) for out, y in zip(learner(MultiStepData(xs)), ys, strict=True))

    function = (lambda x, y: loss(learner(x[0]), y[0])) if K == 1 else total
    gradient = brainstate.transform.jit(brainstate.transform.grad(function, learner.param_states))
    parts = [gradient(xs[t : t + K], ys[t : t + K]) for t in range(0, T - T % K, K)]
    total = jax.tree.map(lambda *g: sum(g), *parts)
    if T % K:
        rest = learner.etrace_grad(
            xs[-(T % K) :], ys[-(T % K) :], step_fn=lambda x, y: loss(learner(x), y), reduction="sum"
        )
        total = jax.tree.map(jnp.add, total, rest)
    for weight in CASES["adaptive spikes"][2]:
        assert error(total[("p_" + weight,)], oracle(model, weight)) < 1e-10


def test_report_and_memory_say_what_is_absorbed():
    model = Model(*CASES["layer"])
    (learner, _), (without, _) = learnt(model), learnt(model, absorb=False)
    assert "exact; absorbed: r (k=0.9)" in str(learner.report)
    assert "downstream memory" in str(without.report)
    assert "absorbed" not in str(without.report)
    traces = [f.memory_report().traces["p_w#0->h"] for f in (learner, without)]
    assert traces == [2 * 8 * B * I * H, 8 * B * I * H]
    assert [f.report.operations[0]["trace_bytes"] for f in (learner, without)] == traces


# What breaks the proof. Each step leaks into r of O positions from a layer h of H.


def per_unit(ops, p, s, x, h, y):
    return jnp.linspace(0.1, 0.9, O) * s["r"] + y


def per_unit_gain(ops, p, s, x, h, y):
    return 0.9 * s["r"] + jnp.linspace(0.1, 0.9, O) * y


def by_data(ops, p, s, x, h, y):
    return jax.nn.sigmoid(x[..., :O]) * s["r"] + y


def with_reset(ops, p, s, x, h, y):
    return 0.9 * s["r"] * (1.0 - smooth_spike(s["r"])) + y


def squashed(ops, p, s, x, h, y):
    return 0.9 * s["r"] + jnp.tanh(y)


def learnt_leak(ops, p, s, x, h, y):
    return p["leak"] * s["r"] + y


def mixing_readout(ops, p, s, x, h, y):
    return 0.5 * s["r"] + 0.4 * s["r"][..., ::-1] + y


BROKEN = [per_unit, per_unit_gain, by_data, with_reset, squashed, learnt_leak, mixing_readout]
SIZES["leak"] = ()
SIZES["back"] = (O, H)


def broken(change, read=jnp.tanh):
    def step(ops, p, s, x):
        h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
        r = change(ops, p, s, x, h, ops.matmul(read(h), p["out"]))
        return {"h": h, "r": r}, r

    return step


def constant(ops, p, s, x, h, y):
    return 0.9 * s["r"] + y


def twice(h):
    return jnp.tanh(h) + jnp.roll(h, 1, -1)


@pytest.mark.filterwarnings("ignore::braintrace_compiler.CompilationWarning")
@pytest.mark.parametrize(
    "step",
    [*map(broken, BROKEN), broken(constant, jax.nn.softmax), broken(constant, twice)],
    ids=[*(change.__name__ for change in BROKEN), "softmax", "two positions"],
)
def test_nothing_is_absorbed_without_proof(step):
    model = Model(step, {"h": H, "r": O}, ("w", "out", "leak"))
    learner = compile(model, D_RTRL, data()[0][0], batch_size=B)
    assert not learner.graph.hidden_perturb.memories
    assert "omits downstream memory" in str(learner.report)


def test_the_proof_that_the_others_break_holds():
    model = Model(broken(constant), {"h": H, "r": O}, ("w", "out"))
    learner = compile(model, D_RTRL, data()[0][0], batch_size=B)
    assert [m.names for m in learner.plan.memories] == ["r (k=0.9)"]


def test_a_loop_within_the_step_is_not_absorbed():
    """r feeds back into the layer that it reads, in the same step: the operation is recurrent for the layer."""

    def step(ops, p, s, x):
        fast = ops.matmul(jnp.tanh(s["h"]), p["out"])
        r = 0.9 * s["r"] + fast
        h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"]) + ops.matmul(r, p["back"])
        return {"h": h, "r": r}, r

    learner = compile(Model(step, {"h": H, "r": O}, ("w", "out", "back")), D_RTRL, data()[0][0], batch_size=B)
    assert not learner.plan.memories


def test_a_loop_across_steps_stays_an_omission():
    def step(ops, p, s, x):
        h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"]) + ops.matmul(s["r"], p["back"])
        r = 0.9 * s["r"] + ops.matmul(jnp.tanh(h), p["out"])
        return {"h": h, "r": r}, r

    model = Model(step, {"h": H, "r": O}, ("w", "out", "back"))
    learner, grads = learnt(model)
    assert learner.plan.memories
    omitted = {
        c.operation.weight_path[0]: {o.value for o in c.omissions}
        for c in learner.graph.certificates(learner.plan.memories)
    }
    assert "downstream memory" in omitted["p_w"]
    assert error(grads["w"], oracle(model, "w")) > 0.01


def test_a_second_way_into_the_readout_stays_an_omission():
    """The part of the memory that comes by a marked operation of its own is left out, and the certificate says so."""

    def step(ops, p, s, x):
        h = 0.7 * jnp.tanh(s["h"]) + ops.matmul(x, p["w"])
        z = jnp.concatenate([jnp.tanh(h), ops.matmul(h, p["u"])], -1)
        r = 0.9 * s["r"] + ops.matmul(z, p["both"])
        return {"h": h, "r": r}, r

    model = Model(step, {"h": H, "r": O}, ("w", "u", "both"))
    learner, grads = learnt(model)
    assert learner.plan.memories
    first = learner.graph.certificates(learner.plan.memories)[0]
    assert [o.value for o in first.omissions] == ["downstream memory"]
    assert error(grads["w"], oracle(model, "w")) > 0.01
