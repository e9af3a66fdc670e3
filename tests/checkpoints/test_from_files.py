"""Animator.from_files: one line for the files people have; every part can be changed, rescaled and removed later."""
import warnings

import file_makers as make
import numpy as np
import pytest
import torch
from animkit import AnimkitError, Animator, open_checkpoint
from transformers import CLIPTokenizer

WIDTHS = make.WIDTHS


def tokenizer():
    letters = [chr(c) for c in range(97, 123)]
    vocab = {p: i for i, p in enumerate(letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    state, parts = make.single_file("sd1")
    v2 = make.reference_motion(make.adapter(WIDTHS, mid=True))
    motion = open_checkpoint(make.write(folder / "mm_v2.ckpt", v2)).build()
    look = make.kohya_lora(make.pairs(parts["unet"], "attn1.to_[qv]$"), 2.0) | make.kohya_lora(
        make.pairs(parts["text_encoder"], "q_proj$"), 2.0, "lora_te_text_model_")
    temporal = r"attention_blocks\.\d\.to_"
    full = {n: t + 0.01 if t.is_floating_point() else t for n, t in state.items()}
    return {
        "base": make.write(folder / "base.safetensors", state),
        "full": make.write(folder / "full.ckpt", full, "state_dict"),
        "v2": folder / "mm_v2.ckpt",
        "v3": make.write(folder / "v3.ckpt", make.reference_motion(make.adapter(WIDTHS, seed=8)), "module."),
        "ink": make.write(folder / "ink.safetensors", look),
        "adapter": make.write(folder / "v3_adapter.ckpt", make.reference_lora(make.pairs(parts["unet"], make.SPATIAL))),
        "zoom": make.write(folder / "ZoomIn.ckpt", make.reference_lora(make.pairs(motion, temporal, seed=1))),
        "roll": make.write(folder / "RollLeft.safetensors", make.reference_lora(make.pairs(motion, temporal, seed=2))),
    }


def animator(files, base="base", **parts):
    return Animator.from_files(base=files[base], tokenizer=tokenizer(), device="cpu", **parts)


def draw(a):
    return np.asarray(a("a cat", frames=3, steps=2, seed=1, height=16, width=16, progress=False))


def everything(files):
    return dict(
        motion=files["v2"],
        adapter={files["adapter"]: 0.5},
        looks=[files["ink"]],
        motion_loras={files["zoom"]: 0.8, files["roll"]: 0.3},
    )


def test_everything_in_one_line_then_rescaled_and_removed(files):
    a = animator(files, **everything(files))
    assert dict(a.alpha) == {"mm_v2": 1.0, "v3_adapter": 0.5, "ink": 1.0, "ZoomIn": 0.8, "RollLeft": 0.3}
    clip = draw(a)
    assert clip.shape[0] == 3 and clip.std() > 0
    for name in ("ZoomIn", "RollLeft", "ink", "v3_adapter"):
        before = draw(a)
        a.alpha[name] = 2.0
        assert not np.array_equal(draw(a), before), name
        a.remove(name)
    assert np.array_equal(draw(a), draw(animator(files, motion=files["v2"])))
    a.remove("mm_v2")
    assert np.array_equal(draw(a), draw(animator(files)))


def test_the_order_does_not_matter(files):
    given = everything(files)
    turned = {
        "motion_loras": {files["roll"]: 0.3, files["zoom"]: 0.8},
        "looks": files["ink"],
        "adapter": {files["adapter"]: 0.5},
        "motion": files["v2"],
    }
    one, two = animator(files, **given), animator(files, **turned)
    assert dict(one.alpha) == dict(two.alpha)
    assert np.abs(draw(one).astype(int) - draw(two)).max() <= 1  # sums of floats in another order


def test_the_motion_module_can_be_changed_under_its_motion_loras(files):
    with pytest.raises(AnimkitError, match="strict=False"):
        animator(files, motion=files["v3"], motion_loras=files["zoom"])
    with pytest.warns(UserWarning, match="8 of its 128 layers"):
        a = animator(files, motion=files["v3"], motion_loras=files["zoom"], strict=False)
    v3 = draw(a)
    a.insert(files["v2"])
    assert "ZoomIn" in a.alpha and "v3" not in a.alpha and not np.array_equal(draw(a), v3)


def test_a_whole_model_can_be_the_base_or_a_look(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        as_look = animator(files, looks=[files["full"]])
        as_base = animator(files, "full")
    # the VAE stays the base's: a look is what the UNet and the text encoder draw
    latents = []
    for a in (as_look, as_base):
        a(
            "a cat",
            frames=1,
            steps=2,
            seed=1,
            height=16,
            width=16,
            progress=False,
            callback=lambda s, t, x: latents.append(x.clone()),
        )
    assert torch.equal(latents[1], latents[3])
    as_look.remove("full")
    assert np.array_equal(draw(as_look), draw(animator(files)))


def test_files_in_each_others_places_are_refused_before_the_base_is_loaded(files):
    for parts, sentence in ((dict(motion=files["ink"]), r"given as a motion module \(motion=\), but it is a LoRA"),
                            (dict(looks=[files["v2"]]), "given as a look .* but it is a motion module"),
                            (dict(motion_loras=files["ink"]), "given as a MotionLoRA"),
                            (dict(adapter=files["zoom"]), "given as a domain adapter .* but it is a MotionLoRA"),
                            (dict(motion=[files["v2"], files["v3"]]), "one motion module"),
                            (dict(looks=["no-such-look"]), "no-such-look")):
        with pytest.raises(AnimkitError, match=sentence):
            Animator.from_files("/no/base/at/all.safetensors", **parts)
    with pytest.raises(AnimkitError, match="is a LoRA, not a base"):
        animator(files, "ink")


def test_a_look_that_fits_the_unet_and_not_the_text_encoder_changes_nothing(files, tmp_path):
    weights = dict(open_checkpoint(files["full"]).weights)
    name = next(n for n in weights if n.endswith("token_embedding.weight"))
    weights[name] = torch.cat([weights[name], weights[name]])
    a = animator(files)
    before = draw(a)
    with pytest.raises(AnimkitError, match="1 tensor of another shape: .*token_embedding"):
        a.insert(open_checkpoint(make.write(tmp_path / "look.safetensors", weights)))
    assert not a.alpha and np.array_equal(draw(a), before)


def test_every_part_has_a_name_of_its_own(files, tmp_path):
    """The file's; its folder's where all such files have the same; numbered where two agree."""
    import shutil
    for folder in ("ink", "neon.v2"):
        (tmp_path / folder).mkdir()
        shutil.copy(files["ink"], tmp_path / folder / "pytorch_lora_weights.safetensors")
    shutil.copy(files["ink"], tmp_path / "ink.safetensors")
    make.adapter(WIDTHS).save_pretrained(tmp_path / "mine")
    adapter = open_checkpoint(files["adapter"])
    a = animator(files, looks=[tmp_path / "ink", tmp_path / "ink.safetensors", tmp_path / "neon.v2"],
                 motion=tmp_path / "mine", adapter={adapter: 0.5})
    assert dict(a.alpha) == {"mine": 1.0, "v3_adapter": 0.5, "ink": 1.0, "ink-2": 1.0, "neon_v2": 1.0}
    a.remove("v3_adapter")
    assert a.insert(adapter) == "v3_adapter"
    a.remove("neon_v2")
    assert a.insert(tmp_path / "neon.v2") == "neon_v2"  # one at a time as all at once


def test_a_part_in_the_hub_s_cache_goes_by_its_model(files, tmp_path):
    """There every file is a link to blobs/HASH, in a folder that is called by a commit."""
    def cached(model, name, source):
        snapshot, blobs = (tmp_path / f"models--ann--{model}" / part for part in ("snapshots/0123abc", "blobs"))
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        (blobs / "deadbeef").write_bytes(source.read_bytes())
        (snapshot / name).symlink_to(blobs / "deadbeef")
        return snapshot
    make.adapter(WIDTHS).save_pretrained(tmp_path / "mine")
    ink, neon = (cached(model, "pytorch_lora_weights.safetensors", files["ink"]) for model in ("ink", "neon.v2"))
    named = cached("looks", "red.safetensors", files["ink"])
    motion = cached("move", "diffusion_pytorch_model.safetensors",
                    tmp_path / "mine" / "diffusion_pytorch_model.safetensors")
    a = animator(files, motion=motion, looks=ink / "pytorch_lora_weights.safetensors")
    assert a.insert(neon) == "neon_v2" and a.insert(named / "red.safetensors") == "red"
    assert list(a.alpha) == ["move", "ink", "neon_v2", "red"]


def test_what_cannot_be_is_said_before_the_base_is_loaded(files):
    for parts, sentence in ((dict(looks={files["ink"]: "much"}), "must be a finite number, not 'much'"),
                            (dict(looks={files["ink"]: None}), "must be a finite number, not None"),
                            (dict(looks={files["ink"]: float("nan")}), "must be a finite number"),
                            (dict(motion_loras=files["zoom"]), "there is none; give one as motion="),
                            (dict(looks=[3]), "looks= takes a file's path, .* not 3"),
                            (dict(adapter=0.5), "adapter= takes a file's path, .* not 0.5"),
                            (dict(motion=open_checkpoint(files["v3"]).build()), "what you hold already goes into")):
        with pytest.raises(AnimkitError, match=sentence):
            Animator.from_files("/no/base/at/all.safetensors", **parts)


def test_a_unet_alone_says_what_it_leaves_out_though_an_animator_took_it_all(files):
    for file, sentence in (("ink", "its 2 layers for the text encoder are"), ("full", "its text encoder is")):
        look, a = open_checkpoint(files[file]), animator(files)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            a.insert(look)
        with pytest.warns(UserWarning, match=f"{sentence} not used by a UNet alone"):
            a.video_unet.insert(look, name="again")
