"""Carries: what a learner keeps of the past between windows (semantics, section 4)."""

from ._none import NoCarry as NoCarry
from ._trace import TraceCarry as TraceCarry
