"""Write ``upstream.npz``: parameters, input and output of layers of braintrace 0.2.8, the field's existing library.

Run in an environment that has that release from the package index (Apache-2.0) and not this one:
``python make_upstream.py``. Everything in the file comes from random numbers. Keys are ``layer/path.of.parameter``,
``layer/x`` and ``layer/y``, the output of the third of three steps with the same input.
"""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

CELLS = (
    *("ValinaRNNCell", "GRUCell", "CFNCell", "MGUCell", "LSTMCell", "URLSTMCell"),
    *("MinimalRNNCell", "MiniGRU", "MiniLSTM", "LRUCell"),
)
SHAPES = {"GroupedLinear": (2, 2, 4), "Conv1d": (2, 5, 2), "Conv2d": (2, 4, 4, 2)}


def layers(nn):
    """The layers by name, of the library whose `nn` this is."""
    normal = brainstate.nn.init.Normal()
    return {
        **{name: lambda name=name: getattr(nn, name)(4, 3) for name in CELLS},
        "Linear": lambda: nn.Linear(4, 3),
        "SignedWLinear": lambda: nn.SignedWLinear(4, 3),
        "ScaledWSLinear": lambda: nn.ScaledWSLinear(4, 3),
        "GroupedLinear": lambda: nn.GroupedLinear(2, 4, 3),
        "LoRA": lambda: nn.LoRA(4, 2, 3),
        "Embedding": lambda: nn.Embedding(5, 3),
        "Conv1d": lambda: nn.Conv1d((5, 2), 3, 2, b_init=normal),
        "Conv2d": lambda: nn.Conv2d((4, 4, 2), 3, 2, b_init=normal),
        "Sequential": lambda: brainstate.nn.Sequential(nn.LSTMCell(4, 3), nn.Linear(3, 2)),
        "LeakyRateReadout": lambda: nn.LeakyRateReadout(4, 3, tau=5.0),
    }


def main():
    """Build, randomise, run and save."""
    import braintrace

    rng, found = np.random.default_rng(0), {}
    for name, make in layers(braintrace.nn).items():
        layer = make()
        brainstate.nn.init_all_states(layer, batch_size=2)
        for path, state in layer.states(brainstate.ParamState).items():
            state.value = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), state.value)
            for keys, leaf in jax.tree.leaves_with_path(state.value):
                found["/".join([name, ".".join([*map(str, path), *(key.key for key in keys)])])] = np.asarray(leaf)
        shape = SHAPES.get(name, (2, 4))
        x = rng.integers(0, 5, 2) if name == "Embedding" else rng.normal(size=shape).astype("float32")
        for _ in range(3):
            y = layer(jnp.asarray(x))
        found[f"{name}/x"], found[f"{name}/y"] = x, np.asarray(y)
    np.savez_compressed("upstream.npz", **found)


if __name__ == "__main__":
    with brainstate.environ.context(dt=1.0):
        main()
