"""Two kinds of figure that the experiments need: bars of methods, curves over a quantity; both with their intervals."""
from collections.abc import Mapping, Sequence
from typing import Any


def bars(summed: Mapping[str, Mapping[str, Mapping]], measures: Sequence[str]) -> Any:
    """A panel for each measure, a bar with its 95 % interval for each method of `measures.summary`; -> a Figure."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2.6 * len(measures) + 1.5, 0.35 * len(summed) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, measures):
        for row, of in enumerate(summed.values()):
            m = of.get(measure)
            if m and m["n"]:
                panel.barh(row, m["value"], color="0.75")
                panel.plot([m["low"], m["high"]], [row, row], color="0.1")
        panel.set_title(measure, fontsize=9)
        low = min((of[measure]["low"] for of in summed.values() if of.get(measure, {}).get("n")), default=0)
        if low > 60:  # cosines times 100 that lie close together: show where they differ
            panel.set_xlim(left=low - 5)
    panels[0].set_yticks(range(len(summed)), list(summed))
    panels[0].invert_yaxis()
    return figure


def curves(x: Sequence[float], lines: Mapping[str, Sequence[Mapping]], labels: tuple[str, str],
           log: bool = False) -> Any:
    """Lines over x, each a row of {"value", "low", "high", "n"} with its interval as a band; -> a Figure."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    panel = figure.subplots()
    for name, points in lines.items():
        kept = [(a, p) for a, p in zip(x, points) if p["n"]]
        at = [a for a, _ in kept]
        panel.plot(at, [p["value"] for _, p in kept], marker="o", label=name)
        panel.fill_between(at, [p["low"] for _, p in kept], [p["high"] for _, p in kept], alpha=0.2)
    if log:
        panel.set_xscale("log")
        panel.set_xticks(list(x), [f"{a:g}" for a in x])
        panel.minorticks_off()
    panel.set_xlabel(labels[0])
    panel.set_ylabel(labels[1])
    if len(lines) > 1:
        panel.legend(fontsize=8)
    return figure
