"""The loss curve in a notebook while it grows: fit(..., watch=LiveCurve())."""
import time

from animkit.training.history import History


class Pace:
    """When to draw the curve: at most every `every` seconds, and more seldom the longer a drawing takes, while all processes
    wait: for 2 % of the time at most. `with pace:` around a drawing measures it."""

    def __init__(self, every: float):
        self.every, self.next, self.start = every, -float("inf"), 0.0

    def due(self, history: History) -> bool:
        return history.ended != "running" or time.monotonic() >= self.next

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *error) -> None:
        now = time.monotonic()
        self.next = now + max(self.every, 50 * (now - self.start))


class LiveCurve:
    """Redraws the curve below the cell, every `every` seconds or more seldom; outside a notebook it does nothing."""

    def __init__(self, every: float = 2.0):
        self.pace, self.handle = Pace(every), None

    def __call__(self, history: History) -> None:
        if not self.pace.due(history):
            return
        try:
            from IPython import get_ipython
        except ImportError:
            return
        if get_ipython() is None:
            return
        from IPython.display import display
        from matplotlib.figure import Figure

        from animkit.show.figure import drawn
        figure, losses = Figure(figsize=(6, 3), layout="constrained"), history.losses
        ends = f", from {losses[0]:.3g} to {losses[-1]:.3g}" if len(losses) else ""
        with self.pace:
            history.plot(figure.subplots())
            # a bare figure may come out as text: Jupyter begins to draw figures in the cell after the first of them
            picture = drawn(figure, f"The loss over {len(losses)} steps{ends}")
            if self.handle is None:
                self.handle = display(picture, display_id=True)
            else:
                self.handle.update(picture)
