"""The algorithms: each names a carry, a signal and their defaults."""

from ._bptt import BPTT as BPTT
from ._bptt import TBPTT as TBPTT
from ._d_rtrl import D_RTRL as D_RTRL
from ._d_rtrl import ParamDimVjpAlgorithm as ParamDimVjpAlgorithm
from ._dni import DNI as DNI
from ._e_prop import EProp as EProp
from ._influence import RTRL as RTRL
from ._influence import UORO as UORO
from ._influence import SnAp as SnAp
from ._ostl import OSTLFeedforward as OSTLFeedforward
from ._ostl import OSTLRecurrent as OSTLRecurrent
from ._ottt import OTTT as OTTT
from ._pp_prop import ES_D_RTRL as ES_D_RTRL
from ._pp_prop import IODimVjpAlgorithm as IODimVjpAlgorithm
from ._pp_prop import pp_prop as pp_prop
from ._three_factor import ThreeFactor as ThreeFactor
