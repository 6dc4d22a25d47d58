"""What is measured: sizes, cells and sides."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Regime:
    """One problem.

    Attributes
    ----------
    cell : str
        A name in `cells.CELLS`.
    B, I, H, T : int
        Batch, inputs, hidden units, time steps. For ``conv``, I is the number of input channels and H of output
        channels, on an image of 16 x 16.
    """

    cell: str
    B: int
    I: int
    H: int
    T: int

    def __str__(self) -> str:
        return f"{self.cell} B{self.B} I{self.I} H{self.H} T{self.T}"

    def at(self, **sizes: Any) -> "Regime":
        """The same problem at other sizes."""
        return replace(self, **sizes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Side:
    """One way to compute the gradient.

    Attributes
    ----------
    name : str
    worker : str
        "ours", or "upstream" for the released library in an environment of its own.
    method : str
        A name in `sides.METHODS`.
    options : dict
        Of the method.
    longest : int, optional
        Slow sides run on so many steps only and are compared by time per step.
    counterpart : str, optional
        Our side that does the same job.
    """

    name: str
    worker: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()
    longest: int | None = None
    counterpart: str | None = None


BASE = "BPTT"
SIDES = (
    Side(BASE, "ours", "bptt"),
    Side("checkpointed BPTT", "ours", "checkpointed_bptt"),
    Side("BPTT by a learner", "ours", "full"),
    Side("strict D-RTRL", "ours", "strict"),
    Side("multi-step 64", "ours", "windows", (("window", 64),)),
    Side("chunks of 64", "ours", "window", (("window", 64),)),
    Side("multi-step 1", "ours", "windows", (("window", 1),)),
    Side("pp_prop", "ours", "pp_prop"),
    Side("per-step SGD", "ours", "per_step", longest=32),
    Side("upstream strict", "upstream", "strict", longest=32, counterpart="strict D-RTRL"),
    Side("upstream multi-step 64", "upstream", "window", (("window", 64),), counterpart="multi-step 64"),
    Side("upstream pp_prop", "upstream", "pp_prop", longest=64, counterpart="pp_prop"),
    Side("upstream per-step SGD", "upstream", "per_step", longest=32, counterpart="per-step SGD"),
)

_WIDE = Regime("", 16, 128, 256, 256)
_WIDER = Regime("", 32, 256, 512, 256)
_SINGLE = Regime("", 1, 128, 256, 256)
_TINY = Regime("", 16, 8, 16, 256)
_GATED = Regime("gru", 16, 64, 128, 256)
_CONV = Regime("conv", 4, 8, 8, 64)


@dataclass(frozen=True)
class Profile:
    """A list of problems and how long to spend on each.

    Attributes
    ----------
    regimes : tuple of Regime
    sides : tuple of str
    rounds : int
        Interleaved rounds; what is reported is the median of the ratios within a round.
    lengths : tuple of int
        T of the memory curves, compiled but not run. None are drawn where empty.
    """

    regimes: tuple[Regime, ...]
    sides: tuple[str, ...]
    rounds: int
    lengths: tuple[int, ...] = ()


def _each(size: Regime, *cells: str) -> tuple[Regime, ...]:
    return tuple(replace(size, cell=cell) for cell in cells)


PROFILES = {
    "smoke": Profile((Regime("rnn", 2, 3, 4, 8),), (BASE, "strict D-RTRL", "multi-step 64"), 3),
    "quick": Profile(
        (*_each(_WIDE, "rnn", "gru"), *_each(_SINGLE, "rnn")),
        (BASE, "checkpointed BPTT", "strict D-RTRL", "multi-step 64", "upstream strict", "upstream multi-step 64"),
        9,
    ),
    "scaling": Profile(
        (
            *(_GATED.at(T=T) for T in (64, 256, 1024)),
            *(_GATED.at(B=B) for B in (1, 4, 64)),
            *(_GATED.at(H=H) for H in (16, 64, 256)),
            *_each(_GATED, "lif1", "lif2", "lif3"),
        ),
        (BASE, "strict D-RTRL", "multi-step 64", "pp_prop"),
        5,
    ),
    "full": Profile(
        (
            *_each(_WIDE, "rnn", "gru", "gru-wr", "lstm", "lif1", "lif2", "lif3"),
            *_each(_WIDER, "rnn", "gru", "gru-wr"),
            *_each(_SINGLE, "rnn", "lif2"),
            *_each(_TINY, "rnn", "lif2"),
            _CONV,
        ),
        tuple(side.name for side in SIDES),
        15,
        (100, 316, 1000, 3162, 10_000),
    ),
}
