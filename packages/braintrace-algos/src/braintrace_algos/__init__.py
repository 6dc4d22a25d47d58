"""Online learners for recurrent and spiking networks.

`compile` makes a learner of a model; a learner is called like the model, gives online gradients under
``brainstate.transform.grad``, and drives whole sequences with `etrace_grad` and `etrace_evolve`.
"""

from ._compare import Agreement as Agreement
from ._compare import GradientComparison as GradientComparison
from ._compare import GradientQuality as GradientQuality
from ._compare import compare_gradients as compare_gradients
from ._compile import compile as compile
from ._config import ETraceConfig as ETraceConfig
from ._data import MultiStepData as MultiStepData
from ._data import SingleStepData as SingleStepData
from ._errors import CheckpointError as CheckpointError
from ._errors import LearnerError as LearnerError
from ._errors import LearnerTypeError as LearnerTypeError
from ._errors import UnknownAlgorithmError as UnknownAlgorithmError
from ._face import FunctionalLearner as FunctionalLearner
from ._filters import FixedRandomFeedback as FixedRandomFeedback
from ._filters import GradExpon as GradExpon
from ._filters import KappaFilter as KappaFilter
from ._learner import ETraceState as ETraceState
from ._learner import OnlineLearner as OnlineLearner
from ._mapped import ETraceVmap as ETraceVmap
from ._memory import MemoryReport as MemoryReport
from ._train import History as History
from ._truncation import Truncate as Truncate
from ._truncation import TruncatedTrace as TruncatedTrace
from ._truncation import Truncation as Truncation
from ._version import __version__ as __version__
from .algorithms import BPTT as BPTT
from .algorithms import D_RTRL as D_RTRL
from .algorithms import DNI as DNI
from .algorithms import ES_D_RTRL as ES_D_RTRL
from .algorithms import OTTT as OTTT
from .algorithms import RTRL as RTRL
from .algorithms import TBPTT as TBPTT
from .algorithms import UORO as UORO
from .algorithms import EProp as EProp
from .algorithms import IODimVjpAlgorithm as IODimVjpAlgorithm
from .algorithms import OSTLFeedforward as OSTLFeedforward
from .algorithms import OSTLRecurrent as OSTLRecurrent
from .algorithms import ParamDimVjpAlgorithm as ParamDimVjpAlgorithm
from .algorithms import SnAp as SnAp
from .algorithms import ThreeFactor as ThreeFactor
from .algorithms import pp_prop as pp_prop
from .carries import SyntheticGradient as SyntheticGradient
from .carries import train_synthetic_gradient as train_synthetic_gradient
