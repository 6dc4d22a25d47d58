"""Layers and recurrent cells built from marked operations: `braintrace.nn`."""

from ._cells import CFNCell as CFNCell
from ._cells import GRUCell as GRUCell
from ._cells import LRUCell as LRUCell
from ._cells import LSTMCell as LSTMCell
from ._cells import MGUCell as MGUCell
from ._cells import MiniGRU as MiniGRU
from ._cells import MiniLSTM as MiniLSTM
from ._cells import MinimalRNNCell as MinimalRNNCell
from ._cells import RecurrentCell as RecurrentCell
from ._cells import URLSTMCell as URLSTMCell
from ._cells import ValinaRNNCell as ValinaRNNCell
from ._cells import VanillaRNNCell as VanillaRNNCell
from ._errors import ConfigurationError as ConfigurationError
from ._errors import InputShapeError as InputShapeError
from ._errors import InputTypeError as InputTypeError
from ._errors import MissingStateError as MissingStateError
from ._linear import Linear as Linear
from ._version import __version__ as __version__
