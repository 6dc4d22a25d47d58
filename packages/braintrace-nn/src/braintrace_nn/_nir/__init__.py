from ._export import to_nir as to_nir
from ._model import NIRModel as NIRModel
from ._model import from_nir as from_nir
from ._neurons import IF as IF
from ._neurons import LI as LI
from ._neurons import LIF as LIF
from ._neurons import CubaLI as CubaLI
from ._neurons import CubaLIF as CubaLIF
