"""Optimisers of braintools inside the compiled loop of `etrace_train`: the same updates as those of Optax."""

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

import braintrace

optim = pytest.importorskip("braintools").optim

T, B, I, H = 12, 3, 4, 5


def trained(optimizer, interrupted_at=None):
    """Parameters after learning online, in two calls; in between, all goes through a file if that is asked for."""

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = braintrace.nn.GRUCell(I, H)
            self.out = braintrace.nn.Linear(H, 1)

        def update(self, x):
            return self.out(self.rnn(x))

    xs = jax.random.normal(jax.random.key(0), (T, B, I))

    def fresh(seed):
        brainstate.random.seed(seed)
        learner = braintrace.compile(Net(), "d_rtrl", xs[0], batch_size=B)
        chosen = optimizer()
        learner.init_optimizer(chosen)
        return learner, chosen

    def go_on(learner, chosen, xs):
        return learner.etrace_train(
            xs, step_fn=lambda x: ((learner(x) - x[..., :1]) ** 2).mean(), optimizer=chosen, update_every=2
        ).losses

    learner, chosen = fresh(0)
    first = go_on(learner, chosen, xs[:6])
    if interrupted_at is not None:
        learner.save(interrupted_at)
        learner, chosen = fresh(1)
        learner.restore(interrupted_at)
    losses = jnp.concatenate([first, go_on(learner, chosen, xs[6:])])
    return {path: state.value for path, state in learner.param_states.items()}, losses


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: optax.adam(1e-2), lambda: optim.Adam(lr=1e-2)),
        (lambda: optax.sgd(0.1), lambda: optim.SGD(lr=0.1)),
    ],
    ids=["Adam", "SGD"],
)
def test_they_update_as_those_of_optax_do(ours, theirs):
    (expected, losses), (found, same) = trained(ours), trained(theirs)
    assert jnp.allclose(losses, same, rtol=1e-5)
    for path, value in expected.items():
        for leaf, other in zip(jax.tree.leaves(value), jax.tree.leaves(found[path]), strict=True):
            assert jnp.allclose(leaf, other, atol=1e-6), path


def test_they_go_on_from_a_checkpoint(tmp_path):
    def optimizer():
        return optim.Adam(lr=optim.StepLR(1e-2, step_size=2, gamma=0.5))

    (expected, _), (found, _) = trained(optimizer), trained(optimizer, tmp_path / "run.npz")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), expected, found))
