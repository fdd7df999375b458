"""What a survey counts by: temperatures, and bins of confidence."""

TEMPERATURES = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
CONFIDENCE_BINS = 20
# Bins of the teacher's probability of the label, in reports of w.
DIFFICULTY_BINS = 10
