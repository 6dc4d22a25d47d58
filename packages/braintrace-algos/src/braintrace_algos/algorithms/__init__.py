"""The algorithms: each names a carry, a signal and their defaults."""

from ._bptt import BPTT as BPTT
from ._d_rtrl import D_RTRL as D_RTRL
from ._d_rtrl import ParamDimVjpAlgorithm as ParamDimVjpAlgorithm
