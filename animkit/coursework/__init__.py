"""For teaching: checks that a student runs in the cell of the exercise (checks.py, on verdict.py)."""
