"""Tasks of working memory, made of spikes: evidence accumulation and delayed match to sample."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

CHANNEL = 10
"""Input neurons that fire together."""


class Trials(NamedTuple):
    """A batch of trials.

    Attributes
    ----------
    spikes : array (T, B, channels * CHANNEL)
    label : array (B,) of int
    weight : array (T, B)
        Of the loss: one over the number of its steps where an answer is asked for, zero elsewhere.
    """

    spikes: jax.Array
    label: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Cues come from the left or from the right; after a delay, say from where most came (Morcos and Harvey 2016).

    Channels: left, right, the request for an answer, noise. Times are in steps.
    """

    cues: int
    cue: int
    gap: int
    delay: tuple[int, int]
    answer: int
    rate: float

    channels, names = 4, ("left", "right", "answer!", "noise")

    @property
    def steps(self) -> int:
        """T of the longest trial."""
        return self.cues * (self.cue + self.gap) + self.delay[1] + self.answer

    def draw(self, key: jax.Array, batch: int) -> Trials:
        """A batch of new trials."""
        keys = jax.random.split(key, 4)
        bias = jnp.where(jax.random.bernoulli(keys[0], 0.5, (batch, 1)), 0.7, 0.3)
        right = jax.random.bernoulli(keys[1], bias, (batch, self.cues))
        start = self.cues * (self.cue + self.gap) + jax.random.randint(
            keys[2], (batch,), self.delay[0], self.delay[1] + 1
        )
        t = jnp.arange(self.steps)[:, None]
        number, phase = jnp.divmod(t, self.cue + self.gap)
        shown = (number < self.cues) & (phase < self.cue)
        side = jnp.where(number < self.cues, right.T[jnp.minimum(number[:, 0], self.cues - 1)], False)
        asked = (t >= start) & (t < start + self.answer)
        on = jnp.stack([shown & ~side, shown & side, asked], -1)
        label = (2 * right.sum(1) > self.cues).astype(jnp.int32)
        return Trials(_spikes(keys[3], on, self.rate), label, asked / self.answer)


@dataclasses.dataclass(frozen=True)
class Match:
    """One of two samples, a delay, one of two tests: say during the test whether it was the same.

    Channels: stimuli A and B, the request for an answer, noise. Times are in steps.
    """

    sample: int
    delay: tuple[int, int]
    test: int
    answer: int
    rate: float

    channels, names = 4, ("A", "B", "answer!", "noise")

    @property
    def steps(self) -> int:
        """T of the longest trial."""
        return self.sample + self.delay[1] + self.test + self.answer

    def draw(self, key: jax.Array, batch: int) -> Trials:
        """A batch of new trials."""
        keys = jax.random.split(key, 4)
        first, second = jax.random.bernoulli(keys[0], 0.5, (2, batch))
        start = self.sample + jax.random.randint(keys[1], (batch,), self.delay[0], self.delay[1] + 1)
        t = jnp.arange(self.steps)[:, None]
        shown, tested = t < self.sample, (t >= start) & (t < start + self.test)
        asked = (t >= start + self.test) & (t < start + self.test + self.answer)
        on = jnp.stack([(shown & v) | (tested & w) for v, w in ((~first, ~second), (first, second))] + [asked], -1)
        return Trials(_spikes(keys[3], on, self.rate), (first == second).astype(jnp.int32), asked / self.answer)


Task = Evidence | Match


def _spikes(key: jax.Array, on: jax.Array, rate: float) -> jax.Array:
    """Poisson spikes of channels that are on or off, and of a channel of noise at a quarter of their rate."""
    p = rate * jnp.concatenate([on, jnp.full((*on.shape[:-1], 1), 0.25)], -1)
    return jax.random.bernoulli(key, jnp.repeat(p, CHANNEL, -1)).astype(jnp.float32)


SIZES: dict[str, dict[str, Task]] = {
    "evidence": {
        "small": Evidence(cues=5, cue=12, gap=4, delay=(20, 40), answer=15, rate=0.2),
        "full": Evidence(cues=7, cue=100, gap=50, delay=(500, 1500), answer=150, rate=0.04),
    },
    "match": {
        "small": Match(sample=20, delay=(20, 40), test=20, answer=15, rate=0.2),
        "full": Match(sample=150, delay=(500, 1000), test=150, answer=150, rate=0.04),
    },
}
