"""Carries: what a learner keeps of the past between windows (semantics, section 4)."""

from ._base import Carry as Carry
from ._factored import FactoredCarry as FactoredCarry
from ._influence import LARGEST as LARGEST
from ._influence import InfluenceCarry as InfluenceCarry
from ._influence import SketchCarry as SketchCarry
from ._neighbourhood import NeighbourhoodCarry as NeighbourhoodCarry
from ._synthetic import SyntheticCarry as SyntheticCarry
from ._synthetic import SyntheticGradient as SyntheticGradient
from ._synthetic import train_synthetic_gradient as train_synthetic_gradient
from ._trace import TraceCarry as TraceCarry
from ._variants import CoupledTraceCarry as CoupledTraceCarry
from ._variants import FilteredTraceCarry as FilteredTraceCarry
from ._variants import ModulatedTraceCarry as ModulatedTraceCarry
from ._variants import recurrent_groups as recurrent_groups
