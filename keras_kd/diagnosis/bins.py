"""What a survey counts by: temperatures, and bins of confidence and of w."""

import numpy as np

TEMPERATURES = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
CONFIDENCE_BINS = 20
SCALE_EDGES = np.linspace(-3.0, 5.0, 81)
