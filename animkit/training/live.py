"""The loss curve in a notebook while it grows: fit(..., watch=LiveCurve())."""
import time

from animkit.training.history import History


class LiveCurve:
    """Draws the curve below the cell again at most every `every` seconds; outside a notebook it does nothing."""

    def __init__(self, every: float = 2.0):
        self.every, self.shown, self.handle = every, -float("inf"), None

    def __call__(self, history: History) -> None:
        if time.monotonic() - self.shown < self.every and history.ended == "running":
            return
        try:
            from IPython import get_ipython
        except ImportError:
            return
        if get_ipython() is None:
            return
        import matplotlib.pyplot as plt
        from IPython.display import display
        with plt.ioff():
            figure, ax = plt.subplots(figsize=(6, 3))
            history.plot(ax)
        plt.close(figure)  # or the cell would show it once more at its end
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.shown = time.monotonic()
