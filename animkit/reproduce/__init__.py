"""The paper's experiments, rerun: claims and verdicts, what a notebook of reproduce/ leaves, the report over them.

    from animkit import reproduce
    run = reproduce.Experiment("comparison", preset, PRESETS, given={"prompts": prompts}, seed=seed, out=out, work=work)
    run.judge("smooth", difference, reproduce.above(difference))
    run.finish(metrics)
"""
from importlib import import_module

# Public name -> the module that holds it; imported on first use.
_PUBLIC = {
    "CLAIMS": "claims", "Claim": "claims", "VERDICTS": "claims", "above": "claims", "below": "claims",
    "Experiment": "experiment",
    "asked_moving": "drawing", "drawn": "drawing", "shipped": "drawing",
    "measured": "measures", "summary": "measures", "table": "measures",
    "lead": "measures", "resampled": "measures", "rank_correlation": "measures", "steadiness": "measures",
    "move_made": "measures",
    "held_out_loss": "measures", "power_law": "measures", "only_levels": "measures", "levels_of": "measures",
    "bars": "figures", "curves": "figures",
    "collect": "report", "overview": "report", "section": "report", "shown": "report", "markdown": "report",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
