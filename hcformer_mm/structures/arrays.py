"""Types of the arrays that evaluation and visualization exchange."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RGBImage = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
