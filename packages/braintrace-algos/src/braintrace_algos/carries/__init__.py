"""Carries: what a learner keeps of the past between windows (semantics, section 4)."""

from ._base import Carry as Carry
from ._factored import FactoredCarry as FactoredCarry
from ._trace import TraceCarry as TraceCarry
