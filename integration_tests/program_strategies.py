"""Hypothesis strategies for the programs of `programs`."""

from typing import Any

import hypothesis.strategies as st
from programs import Node, Program

I = 2


class _Builder:
    """Grows a program node by node, by drawing."""

    def __init__(self, draw: Any, batch: tuple[int, ...]):
        self.draw, self.batch = draw, batch
        self.nodes: list[Node] = []
        self.sizes: list[int] = []
        self.states: list[int] = []
        self.new: dict[int, int] = {}
        self.previous: dict[int, int] = {}
        self.weights: list[Any] = []
        self.params: dict[str, tuple[int, ...]] = {}

    def flip(self, chance: int = 2) -> bool:
        return self.draw(st.integers(1, chance)) == chance

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def add(self, kind: str, *reads: int, size: int | None = None, value: Any = None) -> int:
        self.nodes.append(Node(kind, reads, value))
        self.sizes.append(self.sizes[reads[0]] if size is None else size)
        return len(self.nodes) - 1

    def _weight(self, kind: str, shape: tuple[int, ...]) -> None:
        chains = ["itself", "twice", "sine", "product"] + (["transposed"] if kind == "matmul" else [])
        if shape != (1,):  # whose only element the mask would hide
            chains.append("masked")
        chain = self.pick(*chains)
        wanted = shape[::-1] if chain == "transposed" else shape
        names = []
        for _ in range(2 if chain == "product" else 1):
            same = [n for n, s in self.params.items() if s == wanted and n not in names]
            if same and self.flip(4):
                names.append(self.pick(*same))
            else:
                names.append(f"w{len(self.params)}")
                self.params[names[-1]] = wanted
        self.weights.append((tuple(names), chain, shape))

    def matmul(self, source: int, size: int) -> int:
        self._weight("matmul", (self.sizes[source], size))
        return self.add("matmul", source, size=size)

    def element_wise(self, size: int) -> int:
        self._weight("element_wise", (size,))
        return self.add("element_wise", size=size)

    def cat(self, *parts: int) -> int:
        return parts[0] if len(parts) == 1 else self.add("cat", *parts, size=sum(self.sizes[p] for p in parts))

    def before(self, state: int) -> int:
        if state not in self.previous:
            self.previous[state] = self.add("h", size=self.states[state], value=state)
        return self.previous[state]

    def moved(self, source: int) -> int:
        """The same elements in other places, now and then."""
        kind = self.pick("still", "still", "still", "roll", "flip", "there and back")
        if kind == "roll":
            return self.add("roll", source, value=1)
        if kind == "flip":
            return self.add("flip", source)
        if kind == "there and back":
            return self.add("roll", self.add("roll", source, value=1), value=-1)
        return source

    def drive(self, operand: int, size: int) -> int:
        """What an operation sends to a layer: as it is, or gated by another part of itself."""
        if self.flip(3):
            y = self.matmul(operand, 2 * size)
            parts = [self.add("part", y, size=size, value=b) for b in ((0, size), (size, 2 * size))]
            return self.moved(self.add("mul", self.add("sigmoid", parts[0]), self.add("tanh", parts[1])))
        y = self.moved(self.matmul(operand, size))
        if self.flip(8):
            y = self.add("centre", y)
        return self.pick(y, self.add("tanh", y))

    def following(self, leader: int, operand: int) -> int:
        """A state without a past of its own: made of the one before it, gated now and then, or the very same."""
        if self.flip(3):
            return leader
        value = self.add("tanh", leader)
        if self.flip():
            value = self.add("mul", self.add("sigmoid", self.matmul(operand, self.sizes[leader])), value)
        return self.moved(value) if self.flip(4) else value

    def decay(self, state: int) -> int:
        past = self.before(state)
        kind = self.pick("constant", "constant", "marked", "gain", "soft", "centred", "forgets")
        if kind == "marked":
            return self.add("mul", past, self.add("sigmoid", self.element_wise(self.states[state])))
        if kind == "gain":
            return self.add("mul", past, self.element_wise(1))
        if kind == "soft":
            return self.add("mul", past, self.add("keep", past))
        if kind == "centred" and self.flip(2):
            return self.add("scale", self.add("centre", past), value=0.8)
        if kind == "forgets":
            return self.add("scale", self.add("tanh", past), value=0.3)
        return self.add("scale", past, value=0.9)


@st.composite
def programs(draw: Any) -> Program:
    """One to three layers of one to three states, with recurrence, gates, resets, layouts, residuals and readouts."""
    b = _Builder(draw, draw(st.sampled_from([(), (2,)])))
    x = b.add("x", size=I)
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        size = b.pick(2, 3)
        layers.append([len(b.states) + k for k in range(draw(st.integers(1, 3)))])
        b.states += [size] * len(layers[-1])

    message = x
    for number, layer in enumerate(layers):
        size, last = b.states[layer[0]], layer[-1]
        parts = [message]
        if b.flip():
            parts.append(b.pick(b.before(last), b.add("tanh", b.before(layer[0]))))
        if number + 1 < len(layers) and b.flip(4):
            parts.append(b.before(layers[number + 1][-1]))
        operand = b.cat(*parts)
        if b.flip(4):
            reset = b.add("sigmoid", b.matmul(operand, size))
            operand = b.cat(operand, b.add("mul", reset, b.before(last)))
        arriving = b.drive(operand, size)
        for k, state in enumerate(layer):
            if k and b.flip(3):
                b.new[state] = b.following(b.new[layer[k - 1]], operand)
                arriving = b.new[state]
                continue
            if k and b.flip(5):  # a delay line
                b.new[state] = b.before(layer[k - 1])
                continue
            kept = b.decay(state)
            if k and b.flip():
                arriving = b.add("keep", b.before(layer[k - 1]))
            value = b.add("add", kept, arriving)
            if state != last and b.flip(3):
                value = b.add("add", value, b.add("scale", b.before(last), value=-0.4))
            residual = [s for s in b.new if b.states[s] == size and s not in layer]
            if residual and b.flip(4):
                value = b.add("add", value, b.add("scale", b.moved(b.new[b.pick(*residual)]), value=0.5))
            b.new[state] = value
            arriving = b.pick(value, b.add("sigmoid", value))
        message = b.pick(b.new[last], b.add("tanh", b.new[last]))

    outputs = [b.pick(message, b.matmul(message, 2))]
    if b.flip(3):
        outputs.append(b.new[b.pick(*b.new)])
    if b.flip(4):
        outputs.append(b.matmul(b.before(layers[0][0]), 2))
    new = tuple(b.new[s] for s in range(len(b.states)))
    return Program(tuple(b.nodes), tuple(b.states), new, tuple(outputs), tuple(b.weights), b.params, b.batch)
