"""What a clip is worth, in numbers (5.2, 5.3): each metric is checked in tests/metrics on clips whose answer is known.

    from animkit import metrics
    metrics.camera_path(clip).shot                      # "zoom in"
    metrics.bootstrap([metrics.motion_of(c).amount for c in clips])

A *clip* here is a Clip, or an array f h w 3 of uint8.
"""
from importlib import import_module

# Public name -> the module that holds it; imported on first use.
_PUBLIC = {
    "Interval": "intervals", "bootstrap": "intervals", "share": "intervals",
    "Encoder": "clip_scores", "score_clips": "clip_scores", "text_score": "clip_scores",
    "domain_score": "clip_scores", "smooth_score": "clip_scores",
    "Motion": "motion", "optical_flow": "motion", "exact_flow": "motion",
    "motion_of": "motion", "motion_found": "motion",
    "CameraPath": "camera", "camera_path": "camera", "camera_path_of_flow": "camera",
    "name_shot": "camera", "fit_similarity": "camera", "stabilised": "stabilise",
    "MaskReader": "masks", "overlap": "masks", "follows": "masks", "reader_of": "masks", "through": "masks",
    "mark_correlation": "watermark", "watermark_score": "watermark",
    "frechet_distance": "frechet", "motion_judge_features": "frechet", "frechet_extrapolated": "frechet",
    "frechet_interval": "frechet",
    "Page": "study", "plan": "study", "ranked": "study", "save_answers": "study", "load_answers": "study",
    "average_user_ranking": "study", "user_lead": "study", "check_answers": "study", "RankingStudy": "study_widget",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
