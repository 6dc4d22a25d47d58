"""What the demo trains and how: digits as sequences, a small network, one loop for every algorithm."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace_nn as nn
from braintrace_algos import compile

CELLS: dict[str, Callable[[int, int], brainstate.nn.Module]] = {
    "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
    "vanilla": nn.VanillaRNNCell,
}
ROWS, COLUMNS, CLASSES = 8, 8, 10

_jit: Any = brainstate.transform.jit  # its own type says that it may return None, or a decorator


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What the demo trains, and on what budget.

    Parameters
    ----------
    epochs : int
        Passes over the training digits.
    hidden : int
        Units of the recurrent cell.
    cell : {"gru", "lstm", "vanilla"}
    batch_size : int
        Digits per update.
    seed : int
        Of the weights, of the split and of the order of the digits.
    out : pathlib.Path
        The picture to write.
    learning_rate : float
        Where Adam starts; it falls to zero along a cosine.
    noise : float
        Standard deviation of the noise on every pixel shown in training, so that no digit is learnt by heart.
    """

    epochs: int = 60
    hidden: int = 128
    cell: str = "gru"
    batch_size: int = 32
    seed: int = 0
    out: pathlib.Path = pathlib.Path("demo_output/braintrace_demo.png")
    learning_rate: float = 5e-3
    noise: float = 0.2


class Digits(NamedTuple):
    """Digits as sequences: rows ``(ROWS, N, COLUMNS)`` in [0, 1] and labels ``(N,)``."""

    train_rows: np.ndarray
    train_labels: np.ndarray
    test_rows: np.ndarray
    test_labels: np.ndarray


class Run(NamedTuple):
    """What one training gave.

    Attributes
    ----------
    name : str
    losses : array (updates,)
        Loss of every update.
    accuracies : array (epochs,)
        Test accuracy after every epoch, from the last row.
    first_update, other_updates : float
        Seconds of the first update, compilation included, and of all others together.
    logits : array (ROWS, N, CLASSES)
        What the trained network says of the test digits after each row.
    """

    name: str
    losses: np.ndarray
    accuracies: np.ndarray
    first_update: float
    other_updates: float
    logits: np.ndarray

    @property
    def accuracy(self) -> float:
        """Test accuracy at the end of the training."""
        return float(self.accuracies[-1])

    @property
    def milliseconds_per_update(self) -> float:
        """Mean time of an update once compiled."""
        return 1e3 * self.other_updates / max(len(self.losses) - 1, 1)


class RowReader(brainstate.nn.Module):
    """A recurrent cell and a linear readout: reads one row per time step and names the digit after each."""

    def __init__(self, cell: str, hidden: int):
        super().__init__()
        self.cell = CELLS[cell](COLUMNS, hidden)
        self.readout = nn.Linear(hidden, CLASSES)

    def update(self, row: jax.Array) -> jax.Array:
        """Logits ``(..., CLASSES)`` after one more row ``(..., COLUMNS)``."""
        return self.readout(self.cell(row))


def default_model() -> RowReader:
    """The network of the demo, for ``inspect braintrace._demo_training:default_model --input-shape 8``."""
    return RowReader(DemoConfig.cell, DemoConfig.hidden)


def load_digits(seed: int, test_share: float = 0.25) -> Digits:
    """The handwritten digits that ship with scikit-learn, split so that each class keeps its share."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits: Any = load()
    split: Any = train_test_split(
        (digits.images / 16).astype(np.float32),
        digits.target.astype(np.int32),
        test_size=test_share,
        stratify=digits.target,
        random_state=seed,
    )
    train, test, train_labels, test_labels = split
    return Digits(train.swapaxes(0, 1), train_labels, test.swapaxes(0, 1), test_labels)


def make_learner(config: DemoConfig, algorithm: Any, **options: Any) -> Any:
    """The model of `config`, freshly initialised from its seed, under `algorithm`."""
    brainstate.random.seed(config.seed)
    model = RowReader(config.cell, config.hidden)
    row = jnp.zeros((config.batch_size, COLUMNS))
    return compile(model, algorithm, row, batch_size=config.batch_size, **options)


def train(
    name: str,
    learner: Any,
    digits: Digits,
    config: DemoConfig,
    on_update: Callable[[float, float], None] = lambda loss, accuracy: None,
) -> Run:
    """Train a learner with Adam and test it after every epoch.

    The loss of a row is the cross-entropy of the digit named after it, weighted by the number of rows read so
    far, so that a guess from the first row counts little. Whether the gradient is an online one or that of
    BPTT is the learner's affair: nothing here differs.

    Parameters
    ----------
    name : str
    learner : a learner of `make_learner`
    digits : Digits
    config : DemoConfig
    on_update : callable
        Called with the loss and the accuracy of every update.

    Returns
    -------
    Run
    """
    import optax

    updates = config.epochs * (len(digits.train_labels) // config.batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, updates))
    weights = {path: state.value for path, state in learner.param_states.items()}
    optimizer_state = brainstate.ShortTermState(optimizer.init(weights))
    importance = jnp.arange(1.0, ROWS + 1) / (ROWS * (ROWS + 1) / 2)

    @_jit
    def update(rows: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(row: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = learner(row)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return share * loss, (logits.argmax(-1) == labels).mean()

        learner.reset_state()
        grads, losses, hits = learner.etrace_grad(
            rows, importance, step_fn=step, reduction="sum", has_aux=True, return_value=True
        )
        learner.reset_state()  # nothing goes on from here, so that XLA need not make the traces of the end
        weights = {path: state.value for path, state in learner.param_states.items()}
        steps, optimizer_state.value = optimizer.update(grads, optimizer_state.value, weights)
        new: Any = optax.apply_updates(weights, steps)
        for path, weight in new.items():
            learner.param_states[path].value = weight
        return losses.sum(), hits[-1]

    read = make_reader(learner, digits.test_rows, config)
    losses, accuracies, seconds = [], [], []
    for batches in epochs(digits, config):
        for rows, labels in batches:
            start = time.perf_counter()
            loss, accuracy = map(float, update(rows, labels))
            seconds.append(time.perf_counter() - start)
            losses.append(loss)
            on_update(loss, accuracy)
        logits = read()
        accuracies.append((logits[-1].argmax(-1) == digits.test_labels).mean())
    return Run(name, np.array(losses), np.array(accuracies), seconds[0], sum(seconds[1:]), logits)


def make_reader(learner: Any, rows: np.ndarray, config: DemoConfig) -> Callable[[], np.ndarray]:
    """A function that gives the logits ``(ROWS, N, CLASSES)`` of `rows` under the learner's weights."""
    model = RowReader(config.cell, config.hidden)
    brainstate.nn.init_all_states(model, batch_size=rows.shape[1])
    parameters = model.states(brainstate.ParamState)

    @_jit
    def forward(weights: dict[Any, Any]) -> jax.Array:
        for path, weight in weights.items():
            parameters[path].value = weight
        brainstate.nn.reset_all_states(model, batch_size=rows.shape[1])
        return brainstate.transform.for_loop(model, jnp.asarray(rows))

    return lambda: np.asarray(forward({path: state.value for path, state in learner.param_states.items()}))


def epochs(digits: Digits, config: DemoConfig) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Batches of whole size, in an order and with a noise drawn anew for every epoch."""
    random = np.random.default_rng(config.seed)
    size = config.batch_size
    for _ in range(config.epochs):
        order = random.permutation(len(digits.train_labels))
        rows = digits.train_rows + random.normal(0, config.noise, digits.train_rows.shape).astype(np.float32)
        picks = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        yield [(rows[:, pick], digits.train_labels[pick]) for pick in picks]
