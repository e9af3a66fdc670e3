"""The loss curve in a notebook while it grows: fit(..., watch=LiveCurve())."""
import time

from animkit.training.history import History


class LiveCurve:
    """Redraws the curve below the cell at most every `every` seconds, a long run's more seldom: drawing takes 2 % of the time
    at most. Outside a notebook it does nothing."""

    def __init__(self, every: float = 2.0):
        self.every, self.next, self.handle = every, -float("inf"), None

    def __call__(self, history: History) -> None:
        start = time.monotonic()
        if start < self.next and history.ended == "running":
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
        history.plot(figure.subplots())
        ends = f", from {losses[0]:.3g} to {losses[-1]:.3g}" if len(losses) else ""
        # a bare figure may come out as text: Jupyter begins to draw figures in the cell after the first of them
        picture = drawn(figure, f"The loss over {len(losses)} steps{ends}")
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.next = time.monotonic() + max(self.every, 50 * (time.monotonic() - start))
