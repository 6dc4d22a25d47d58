"""Spiking layers with a leaky readout: strict online gradients against backpropagation through rewritten models."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u
from online import assert_close, learn, precision, sequence_gradient
from oracle_cases import H, I, O, join, weight
from oracles import Case, View, gradient, make_data, relative_error, strict_gradient

import braintrace_nn as nn

T, B = 6, 2
CELL, OUT = ("cell",), ("readout",)


def decay(tau):
    return np.exp(-1 / tau)


class Network(brainstate.nn.Module):
    """A spiking layer and a leaky readout."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell
        self.out = nn.LeakyRateReadout(H, O)

    def update(self, x):
        return self.out(self.cell(x))


def readout(o, p, h, s):
    return decay(5) * o.memory(h["out.r"], "readout") + o.matmul(s, p["out.W"])


def lif(o, p, h, x):
    past, seen = o.memory(h, "cell"), o.recurrent(h)
    s = nn.arctan_spike(past["cell.V"] - 1)
    I = decay(5) * past["cell.I"] + o.matmul(join(x, nn.arctan_spike(seen["cell.V"] - 1)), p["cell.W.weight"]["weight"])
    V = decay(10) * (past["cell.V"] - s) + I
    r = readout(o, p, h, nn.arctan_spike(V - 1))
    return {"cell.I": I, "cell.V": V, "out.r": r}, r


def alif(o, p, h, x):
    past, seen = o.memory(h, "cell"), o.recurrent(h)
    s, fed = (nn.arctan_spike(m["cell.V"] - 1 - m["cell.a"]) for m in (past, seen))
    V = decay(10) * (past["cell.V"] - s) + o.matmul(join(x, fed), p["cell.W.weight"]["weight"])
    a = decay(200) * past["cell.a"] + 0.1 * s
    r = readout(o, p, h, nn.arctan_spike(V - 1 - a))
    return {"cell.V": V, "cell.a": a, "out.r": r}, r


def coba(o, p, h, x):
    past, seen = o.memory(h, "cell"), o.recurrent(h)
    fed, s = nn.arctan_spike((seen["cell.V"] + 50) / 10), nn.arctan_spike((past["cell.V"] + 50) / 10)
    g_E = decay(5) * past["cell.g_E"] + o.matmul(join(x, fed[..., :3]), abs(p["cell.W_E.weight"]))
    g_I = decay(10) * past["cell.g_I"] + o.matmul(fed[..., 3:], abs(p["cell.W_I.weight"]))
    limit = (-60 - 80 * g_I) / (1 + g_E + g_I)
    start = past["cell.V"] - (jax.lax.stop_gradient(past["cell.V"]) + 60) * s
    V = limit + (start - limit) * jnp.exp(-(1 + g_E + g_I) / 20)
    r = readout(o, p, h, nn.arctan_spike((V + 50) / 10))
    return {"cell.g_E": g_E, "cell.g_I": g_I, "cell.V": V, "out.r": r}, r


class FromRest(Case):
    """A case whose membranes start at -52 mV."""

    def initial(self, batch, dtype):
        return super().initial(batch, dtype) | {"cell.V": jnp.full((*batch, H), -52.0, dtype)}


W = {"cell.W.weight": {"weight": weight(I + H, H)}, "out.W": weight(H, O)}
W_EI = {"cell.W_E.weight": weight(I + 3, H), "cell.W_I.weight": weight(1, H), "out.W": weight(H, O)}
GROUPS, GROUPS_EI = ({k: OUT if k == "out.W" else CELL for k in params} for params in (W, W_EI))
NETWORKS = {
    "LIF": (
        lambda: nn.LIFCell(I, H, spk_fun=nn.arctan_spike),
        Case("LIF", W, {"cell.I": H, "cell.V": H, "out.r": O}, lif, GROUPS),
    ),
    "ALIF": (
        lambda: nn.ALIFCell(I, H, synapse=nn.Delta(), spk_fun=nn.arctan_spike),
        Case("ALIF", W, {"cell.V": H, "cell.a": H, "out.r": O}, alif, GROUPS),
    ),
    "COBA": (
        lambda: nn.COBACell(I, 3, H - 3, V_init=-52.0, spk_fun=nn.arctan_spike),
        FromRest("COBA", W_EI, {"cell.g_E": H, "cell.g_I": H, "cell.V": H, "out.r": O}, coba, GROUPS_EI),
    ),
}


class WholeReadout(View):
    """The memory of the readout is not cut: its leak is linear, and the traces of the layer take it in."""

    def memory(self, h, group):
        return h if group == "readout" else super().memory(h, group)


@pytest.mark.parametrize("name", NETWORKS)
def test_strict_gradient_is_that_of_the_rewritten_model(name):
    make, case = NETWORKS[name]
    with precision("float64"), brainstate.environ.context(dt=1.0 * u.ms):
        model = Network(make())
        for path, state in model.states(brainstate.ParamState).items():
            state.value = jax.tree.map(jnp.asarray, case.params[".".join(path)])
        data = make_data(case, I, T, (B,), "float64")
        full = gradient(case, data, None)
        rewritten = case._replace(step=lambda o, *rest: case.step(WholeReadout(**vars(o)), *rest))
        for absorb, oracle in ((False, case), (True, rewritten)):
            learner = learn(case, data, model=model, absorb=absorb)
            found = sequence_gradient(case, learner, data)
            assert_close(found, strict_gradient(oracle, data))
            certificates = learner.graph.certificates(learner.plan.memories)
            omissions = {".".join(c.operation.weight_path): {o.value for o in c.omissions} for c in certificates}
            assert omissions.pop("out.W") == set()
            assert relative_error(found["out.W"], full["out.W"]) < 1e-10
            for weight, omitted in omissions.items():
                assert omitted == {"recurrent mixing"} | (set() if absorb else {"downstream memory"})
                assert relative_error(found[weight], full[weight]) > 0.01
