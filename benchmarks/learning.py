"""Adapting neurons learn tasks of working memory online (Bellec et al., Nature Communications 11, 2020).

``python -m benchmarks.learning evidence --size small`` trains with every algorithm in turn and writes the curves as CSV
and PNG, into ``docs/recorded``.
"""

import argparse
import csv
import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import saiunit as u
from tqdm import tqdm

import braintrace
import braintrace.nn

from .tasks import CHANNEL, SIZES, Task

TAU, TAU_OUT = 20.0, 20.0
FIRING, CALM = 0.02, 20.0
"""Spikes per neuron and step to keep to, and what it costs not to."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained and how.

    Attributes
    ----------
    hidden : int
        Neurons, the second half of which adapt.
    tau_a : float
        Time constant of the adapting thresholds, in steps.
    beta : float
        What a spike adds to them.
    gain : float
        Of the initial weights, so that there are spikes to learn from.
    """

    hidden: int
    tau_a: float
    beta: float
    batch: int
    rate: float
    updates: int
    gain: float = 1.0


_SMALL = Setting(hidden=40, tau_a=80.0, beta=0.2, batch=32, rate=5e-3, updates=300)
SETTINGS = {
    "evidence": {
        "small": _SMALL,
        "full": Setting(hidden=100, tau_a=2000.0, beta=0.03, batch=32, rate=5e-3, updates=400),
    },
    "match": {
        "small": _SMALL,
        "full": Setting(hidden=100, tau_a=700.0, beta=0.3, batch=32, rate=5e-3, updates=500, gain=2.5),
    },
}

ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "e-prop": ("eprop", {"kappa_filter_decay": float(np.exp(-1.0 / TAU_OUT))}),
    "e-prop, random feedback": (
        "eprop",
        {
            "kappa_filter_decay": float(np.exp(-1.0 / TAU_OUT)),
            "feedback": "random",
            "random_feedback_key": jax.random.PRNGKey(7),
        },
    ),
    "D-RTRL": ("d_rtrl", {}),
    "D-RTRL, not absorbing": ("d_rtrl", {"absorb": False}),
    "BPTT": ("bptt", {}),
}


class Network(brainstate.nn.Module):
    """Recurrent spiking neurons, half of which adapt, and a leaky readout."""

    def __init__(self, task: Task, setting: Setting):
        super().__init__()
        beta = np.where(np.arange(setting.hidden) < setting.hidden // 2, 0.0, setting.beta).astype(np.float32)
        self.neurons = braintrace.nn.ALIFCell(
            task.channels * CHANNEL,
            setting.hidden,
            tau=TAU * u.ms,
            tau_a=setting.tau_a * u.ms,
            beta=beta,
            synapse=braintrace.nn.Delta(),
        )
        weight = self.neurons.W.weight
        weight.value = jax.tree.map(lambda w: setting.gain * w, weight.value)
        self.out = braintrace.nn.LeakyRateReadout(setting.hidden, 2, tau=TAU_OUT * u.ms)

    def update(self, x: Any) -> Any:
        spikes = self.neurons(x)
        return self.out(spikes), spikes


class Progress(NamedTuple):
    """Of one update: share of right answers before it, loss, spikes per neuron and step, seconds since the start."""

    accuracy: float
    loss: float
    firing: float
    seconds: float


def train(task: Task, setting: Setting, algorithm: str, seed: int = 0) -> Iterator[Progress]:
    """Train forever, an update for each batch of fresh trials.

    The gradient is made while the trial runs, forward in time; the weights change when it ends.
    """
    kind, options = ALGORITHMS[algorithm]
    brainstate.random.seed(seed)
    with brainstate.environ.context(dt=1.0 * u.ms):
        model = Network(task, setting)
        size = (setting.batch, task.channels * CHANNEL)
        learner = braintrace.compile(model, kind, jnp.zeros(size), batch_size=setting.batch, **options)

    def loss(x: Any, label: Any, weight: Any) -> Any:
        logits, spikes = learner(x)
        wrong = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        restless = ((spikes.mean(0) - FIRING) ** 2).mean()
        return (weight * wrong).mean() + CALM / task.steps * restless, (weight[:, None] * logits, spikes.mean())

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(setting.rate))
    draw = jax.jit(task.draw, static_argnums=1)
    begin = time.perf_counter()
    for key in map(jax.random.fold_in, (jax.random.key(seed),) * 10**9, range(10**9)):
        trials = draw(key, setting.batch)
        learner.reset_state()
        labels = jnp.broadcast_to(trials.label, (task.steps, setting.batch))
        with brainstate.environ.context(dt=1.0 * u.ms):
            history = learner.etrace_train(
                trials.spikes,
                labels,
                trials.weight,
                step_fn=loss,
                optimizer=optimizer,
                update_every=task.steps,
                reduction="sum",
                has_aux=True,
            )
        logits, firing = history.aux
        right = float((logits.sum(0).argmax(-1) == trials.label).mean())
        yield Progress(right, float(history.losses.sum()), float(firing.mean()), time.perf_counter() - begin)


def record(name: str, size: str, algorithms: list[str], updates: int, seconds: float, folder: pathlib.Path) -> None:
    """Train with each algorithm and write its curve as it grows: ``<task>_<size>_<algorithm>.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for algorithm in algorithms:
        path = folder / f"{name}_{size}_{algorithm.replace(',', '').replace(' ', '_')}.csv"
        with path.open("w", newline="") as file, tqdm(total=updates, desc=f"{name}, {algorithm}", unit="trial") as bar:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["update", *Progress._fields])
            recent: list[float] = []
            for update, now in enumerate(train(SIZES[name][size], SETTINGS[name][size], algorithm)):
                writer.writerow([update, *(f"{value:.5g}" for value in now)])
                file.flush()
                recent = [*recent[-19:], now.accuracy]
                bar.set_postfix(accuracy=f"{sum(recent) / len(recent):.3f}", loss=f"{now.loss:.3f}", refresh=False)
                bar.update()
                if update + 1 >= updates or now.seconds > seconds:
                    break


def draw(name: str, size: str, folder: pathlib.Path) -> None:
    """The recorded curves of a task as a figure, under an example of a trial."""
    import matplotlib.pyplot as plt

    task = SIZES[name][size]
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), height_ratios=(1, 1.6), layout="constrained")
    trial = task.draw(jax.random.key(5), 1)
    t, unit = np.nonzero(np.asarray(trial.spikes[:, 0]))
    above.plot(t, unit, "|", color="0.2", markersize=3)
    above.set(
        xlim=(0, task.steps),
        ylim=(-0.5, task.channels * CHANNEL - 0.5),
        xlabel="step (ms)",
        yticks=[],
        title=f"one trial: {task.steps} steps",
    )
    for channel, label in enumerate(task.names):
        above.text(-0.01, (channel + 0.5) / task.channels, label, transform=above.transAxes, ha="right", va="center")
    asked = np.nonzero(np.asarray(trial.weight[:, 0]))[0]
    above.axvspan(asked[0], asked[-1], color="tab:orange", alpha=0.25, lw=0)
    for algorithm in ALGORITHMS:
        path = folder / f"{name}_{size}_{algorithm.replace(',', '').replace(' ', '_')}.csv"
        if path.exists():
            accuracy = np.genfromtxt(path, delimiter=",", names=True)["accuracy"]
            window = min(20, len(accuracy))
            smooth = np.convolve(accuracy, np.full(window, 1 / window), "valid")
            below.plot(np.arange(len(smooth)) + window, smooth, label=algorithm)
    below.axhline(0.5, color="0.6", lw=0.8, ls="--")
    below.set(xlabel="updates", ylabel="right answers, mean of 20 batches", ylim=(0.4, 1.02))
    below.legend(loc="lower right", frameon=False)
    figure.savefig(folder / f"{name}_{size}.png", dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    options.add_argument("task", choices=SIZES)
    options.add_argument("--size", choices=("small", "full"), default="small")
    options.add_argument("--algorithm", action="append", choices=ALGORITHMS, help="may be repeated; all by default")
    options.add_argument("--updates", type=int)
    options.add_argument("--seconds", type=float, default=float("inf"), help="time limit for each algorithm")
    options.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/recorded"))
    options.add_argument("--only-draw", action="store_true", help="draw what has been recorded")
    chosen = options.parse_args(arguments)
    if not chosen.only_draw:
        updates = chosen.updates or SETTINGS[chosen.task][chosen.size].updates
        record(chosen.task, chosen.size, chosen.algorithm or list(ALGORITHMS), updates, chosen.seconds, chosen.out)
    draw(chosen.task, chosen.size, chosen.out)


if __name__ == "__main__":
    main()
