"""Layers and recurrent cells: the public names of braintrace_nn."""

from braintrace_nn import CFNCell as CFNCell
from braintrace_nn import ConfigurationError as ConfigurationError
from braintrace_nn import GRUCell as GRUCell
from braintrace_nn import InputShapeError as InputShapeError
from braintrace_nn import InputTypeError as InputTypeError
from braintrace_nn import Linear as Linear
from braintrace_nn import LRUCell as LRUCell
from braintrace_nn import LSTMCell as LSTMCell
from braintrace_nn import MGUCell as MGUCell
from braintrace_nn import MiniGRU as MiniGRU
from braintrace_nn import MiniLSTM as MiniLSTM
from braintrace_nn import MinimalRNNCell as MinimalRNNCell
from braintrace_nn import MissingStateError as MissingStateError
from braintrace_nn import RecurrentCell as RecurrentCell
from braintrace_nn import URLSTMCell as URLSTMCell
from braintrace_nn import ValinaRNNCell as ValinaRNNCell
from braintrace_nn import VanillaRNNCell as VanillaRNNCell
