"""Neurons and synapses of `brainpy.state` behind our layers: they compile, and their weights learn as by BPTT."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u
from online import assert_close, precision
from oracles import relative_error

import braintrace
import braintrace_nn as nn

bps = pytest.importorskip("brainpy.state")

B, I, H, T = 2, 2, 3, 6
DT = 0.1 * u.ms
INPUT = {"Izhikevich": u.mV / u.ms, "IzhikevichRef": u.mV / u.ms, "FitzHughNagumo": 1.0, "HindmarshRose": 1.0}
NEURONS = {
    **dict.fromkeys(("IF", "LIF", "LIFRef", "ExpIF", "ExpIFRef", "QuaIF"), ("V",)),
    **dict.fromkeys(("AdExIF", "AdExIFRef", "AdQuaIF", "AdQuaIFRef", "FitzHughNagumo"), ("V", "w")),
    **dict.fromkeys(("Gif", "GifRef"), ("V", "I1", "I2", "V_th")),
    **dict.fromkeys(("Izhikevich", "IzhikevichRef"), ("V", "u")),
    **dict.fromkeys(("CubaLIF", "CobaLIF"), ("V", "g")),
    "ALIF": ("V", "a"),
    "HH": ("V", "m", "h", "n"),
    "WangBuzsakiHH": ("V", "h", "n"),
    "MorrisLecar": ("V", "W"),
    "HindmarshRose": ("V", "y", "z"),
}
SYNAPSES = {"Expon": u.mS, "Alpha": u.mS, "DualExpon": u.mS, "STP": 1.0, "STD": 1.0}
KINETIC = {"AMPA": ("g",), "GABAa": ("g",), "BioNMDA": ("x", "g")}
QUICK = ("LIFRef", "CubaLIF", "STP", "BioNMDA")


def marked(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


class Timed(brainstate.nn.Module):
    """A module whose steps happen at 0.1 ms, 0.2 ms, ..."""

    def init_state(self, batch_size=None):
        self.count = brainstate.ShortTermState(jnp.zeros((), int))

    def update(self, x):
        self.count.value = self.count.value + 1
        with brainstate.environ.context(t=self.count.value * DT):
            return self.step(x)


class Layer(Timed):
    """A weight and a neuron; the potential is part of the output."""

    def __init__(self, name):
        super().__init__()
        self.w = nn.Linear(I, H)
        self.neuron, self.unit = getattr(bps, name)(H), INPUT.get(name, u.mA)

    def step(self, x):
        spikes = self.neuron(self.w(x) * self.unit)
        return spikes + jnp.tanh(u.get_mantissa(self.neuron.V.value) / 10)


class Projection(Timed):
    """A weight and a synapse."""

    def __init__(self, name):
        super().__init__()
        self.w = nn.Linear(I, H)
        self.synapse, self.unit = getattr(bps, name)(H), SYNAPSES[name]

    def step(self, x):
        return jnp.tanh(u.get_mantissa(self.synapse(self.w(x) * self.unit)))


class Receptors(Timed):
    """Kinetic synapses of input spikes, whose times carry no gradient; a weight behind them, and a neuron."""

    def __init__(self, name):
        super().__init__()
        self.synapse, self.w, self.neuron = getattr(bps, name)(I), nn.Linear(I, H), bps.LIF(H)

    def step(self, x):
        spikes = self.neuron(self.w(10 * u.get_mantissa(self.synapse(x > 0))) * u.mA)
        return spikes + jnp.tanh(u.get_mantissa(self.neuron.V.value) / 10)


class Recurrent(Timed):
    """Neurons that receive input and their own spikes through projections of brainpy."""

    def __init__(self):
        super().__init__()
        self.neuron = bps.LIF(H)
        self.input, self.back = self.project(I), self.project(H)

    def project(self, num_in):
        return bps.AlignPostProj(
            comm=nn.Linear(num_in, H, b_init=None, w_init=lambda shape: 20 * jnp.ones(shape) * u.mA),
            syn=bps.Expon.desc(H, tau=5 * u.ms, g_initializer=brainstate.nn.init.ZeroInit(unit=u.mA)),
            out=bps.CUBA.desc(scale=1.0),
            post=self.neuron,
        )

    def step(self, x):
        self.input(abs(x))
        self.back(self.neuron.get_spike())
        spikes = self.neuron(0.0 * u.mA)
        return spikes + jnp.tanh(u.get_mantissa(self.neuron.V.value))


def gradients(make, algorithm):
    model, rng = make(), np.random.default_rng(0)
    for state in model.states(brainstate.ParamState).values():
        state.value = {k: v + rng.normal(size=v.shape) * u.get_unit(v) for k, v in state.value.items()}
    xs = jnp.asarray(rng.normal(size=(T, B, I)))
    learner = braintrace.compile(model, algorithm, xs[0], batch_size=B)
    return learner, learner.etrace_grad(xs, step_fn=lambda x: ((learner(x) - 0.3) ** 2).mean())


@pytest.fixture(autouse=True)
def doubles():
    with precision("float64"), brainstate.environ.context(dt=DT):
        brainstate.random.seed(0)
        yield


def assert_exact(make, groups):
    learner, strict = gradients(make, "d_rtrl")
    assert [tuple(path[-1] for path in group.hidden_paths) for group in learner.graph.hidden_groups] == groups
    assert all(certificate.exact for certificate in learner.graph.certificates())
    brainstate.random.seed(0)
    assert_close(strict, gradients(make, "bptt")[1])


@pytest.mark.parametrize(("base", "here"), [("Neuron", {*NEURONS}), ("Synapse", {*SYNAPSES, *KINETIC})])
def test_every_model_is_here(base, here):
    kinds = {n for n, kind in vars(bps).items() if isinstance(kind, type) and issubclass(kind, getattr(bps, base))}
    kinds = {name for name in kinds if name[0].isupper()}  # lower case: models of NEST, in some releases
    assert kinds - {base, f"NEST{base}"} == here


@pytest.mark.parametrize("name", marked(NEURONS))
def test_neurons(name):
    assert_exact(lambda: Layer(name), [NEURONS[name]])


@pytest.mark.parametrize("name", marked(SYNAPSES))
def test_synapses(name):
    groups = {"Alpha": [("h", "g")], "DualExpon": [("g_rise",), ("g_decay",)], "STP": [("u", "x")], "STD": [("x",)]}
    assert_exact(lambda: Projection(name), groups.get(name, [("g",)]))


@pytest.mark.parametrize("name", marked(KINETIC))
def test_kinetic_synapses(name):
    assert_exact(lambda: Receptors(name), [KINETIC[name], ("V",)])


def test_surrogates_of_braintools():
    surrogate = pytest.importorskip("braintools").surrogate
    for spike in (surrogate.ReluGrad(), surrogate.Sigmoid(alpha=4.0), surrogate.Arctan()):
        learner, strict = gradients(lambda spike=spike: nn.ALIFCell(I, H, recurrent=False, spk_fun=spike), "d_rtrl")
        assert all(certificate.exact for certificate in learner.graph.certificates())
        assert min(abs(leaf).max() for leaf in jax.tree.leaves(strict)) > 0


def test_projections_of_a_recurrent_network():
    learner, strict = gradients(Recurrent, "d_rtrl")
    assert {o.value for c in learner.graph.certificates() for o in c.omissions} == {"recurrent mixing"}
    brainstate.random.seed(0)
    full = gradients(Recurrent, "bptt")[1]
    grads = [[u.get_mantissa(g["weight"]) for g in learnt.values()] for learnt in (strict, full)]
    assert relative_error(*grads) > 1e-3
