"""Data for training: clips from videos, tables and streams; camera moves; latents and text computed once.

    clips = VideoClips("results_2M_train.csv", videos="videos/", size=256, frames=16, stride=4)
    texts = cache_text(tokenizer, text_encoder, clips.table["caption"], "cache/")
    latents = cache_latents(vae, clips, "cache/").with_text(texts)
    fit(model, loss, Batches(latents, 4), config, folder)     # a batch: {"latents": b c f h w, "text": b n d, ...}

or pixels, decoded ahead of the step, with config.prefetch = 4:

    fit(model, loss, Batches(clips, 4, workers=4), config, folder)                        # {"video": b c f h w, ...}
    fit(model, loss, StreamClips("clips-{000..127}.tar", 4, workers=4), config, folder)   # the same
"""
from importlib import import_module

_PUBLIC = {"VideoClips": "video_clips", "ClipRecipe": "video_clips", "Images": "images", "TensorClips": "batches",
           "WorldClips": "world_clips",
           "Batches": "batches", "epoch_order": "batches", "StreamClips": "streams", "open_shards": "streams",
           "webvid_table": "tables", "video_table": "tables", "image_table": "tables", "cache_latents": "cache",
           "cache_text": "cache", "LatentCache": "cache", "TextCache": "cache", "SHOTS": "camera",
           "crop_path": "camera", "draw_path": "camera"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:  # on first use: `datasets` takes a second to import
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
