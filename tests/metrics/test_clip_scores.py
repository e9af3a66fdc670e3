"""CLIP text, domain and smooth: the formulas on vectors by hand, then through transformers' CLIP and the kit's judge."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from animkit.errors import AnimkitError
from animkit.metrics import Encoder, domain_score, score_clips, smooth_score, text_score
from animkit.miniature.clip import new_clip, tokens
from animkit.miniature.vae import to_signal
from animkit.miniature.words import tokenizer as words
from animkit.show.clip import Clip
from animkit.world import Scene, Thing, render


def test_the_formulas_by_hand():
    frames = torch.tensor([[1.0, 0], [0, 1.0], [0.6, 0.8]])
    assert text_score(frames, torch.tensor([1.0, 0])) == pytest.approx(100 * (1 + 0 + 0.6) / 3)
    assert domain_score(frames, torch.tensor([[1.0, 0], [0, -1.0]])) == pytest.approx(100 * (1 + 0 + 0.6 - 0 - 1 - 0.8) / 6)
    assert smooth_score(frames) == pytest.approx(100 * (0 + 0.8) / 2)
    with pytest.raises(AnimkitError, match="2 at least"):
        smooth_score(frames[:1])


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = words()
    new_clip(tokenizer, (8, 16), (1, 1), 32, 1, seed=0).save_pretrained(folder, torch.float32)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, judge_folder):
    """A CLIP of transformers with a processor, tiny, random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = words()
    tower = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=dict(vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
                                         eos_token_id=tokenizer.eos_token_id, **tower),
                        vision_config=dict(image_size=32, patch_size=8, **tower), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.model_max_length = 77
    size = {"shortest_edge": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moving():
    return render(Scene((Thing("ball", "red", "walking"),), "sea"), 6).uint8


@pytest.mark.parametrize("which", ["judge_folder", "clip_folder"])
def test_scores_through_a_model(which, request, moving):
    encoder = Encoder.from_pretrained(request.getfixturevalue(which), batch=4)
    prompts = ["a red ball by the sea, walking", "a blue cat in space"]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, moving.shape, dtype=np.uint8)
    scores = score_clips(encoder, [Clip(moving), noise], prompts, references=[moving[:2], [Image.fromarray(f) for f in noise[:1]]])
    x, t = encoder.images(moving), encoder.texts(prompts)
    assert torch.allclose(x.norm(dim=-1), torch.ones(6)) and torch.allclose(t.norm(dim=-1), torch.ones(2))
    assert scores["text"][0] == pytest.approx(100 * float((x @ t[0]).mean()), abs=1e-3)
    assert scores["domain"][0] == pytest.approx(100 * float((x @ x[:2].T).mean()), abs=1e-3)
    assert scores["domain"][1] == pytest.approx(100 * float((encoder.images(noise) @ encoder.images(noise[:1]).T).mean()), abs=1e-3)
    assert {k: v.shape for k, v in scores.items()} == {"text": (2,), "domain": (2,), "smooth": (2,)}
    # known answers: a still, backwards, shuffled, and its own picture as reference
    still, (one, two) = np.repeat(moving[:1], 6, 0), (moving[0], noise[0])
    grouped, alternating = np.stack([one, one, one, two, two, two]), np.stack([one, two, one, two, one, two])
    found = score_clips(encoder, [moving, still, moving[::-1], grouped, alternating], references=moving[:1])
    assert set(found) == {"domain", "smooth"}
    own, stands, backwards, once, always = found["smooth"]
    assert stands == pytest.approx(100, abs=1e-3) and backwards == pytest.approx(own, abs=1e-3) and own < 100
    assert always < 99.9 and once == pytest.approx((4 * 100 + always) / 5, abs=1e-3), "one change in five, or five"
    assert found["domain"][1] == pytest.approx(100, abs=1e-3) and found["domain"][0] < 100
    assert found["domain"][[0, 3]] == pytest.approx(found["domain"][[2, 4]], abs=1e-3), "it does not see time"


def test_transformers_own_numbers_come_out(clip_folder, moving):
    """logits_per_image is cosine times the temperature: CLIPModel and CLIPProcessor say the same as Encoder."""
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    said = processor(text=["a red ball by the sea"], images=[Image.fromarray(f) for f in moving], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**said).logits_per_image[:, 0] / model.logit_scale.exp()
    ours = score_clips(Encoder.from_pretrained(clip_folder), [moving], ["a red ball by the sea"])["text"][0]
    assert ours == pytest.approx(100 * float(logits.mean()), abs=1e-3)


def test_the_judge_is_asked_as_the_miniature_asks_it(judge_folder, moving):
    encoder = Encoder.from_pretrained(judge_folder)
    expected = encoder.model.get_image_features(to_signal(torch.from_numpy(moving))).detach()
    assert torch.allclose(encoder.images(moving), torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    ids = tokens(words(), ["a red ball"])
    expected = encoder.model.get_text_features(ids).detach()
    assert torch.allclose(encoder.texts(["a red ball"]), torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)


def test_the_judge_reads_an_as_a(judge_folder):
    encoder = Encoder.from_pretrained(judge_folder)
    assert torch.equal(encoder.texts(["an orange ball"]), encoder.texts(["a orange ball"]))


def test_a_prompt_longer_than_clip_reads_is_cut_not_refused(clip_folder):
    encoder = Encoder.from_pretrained(clip_folder)
    assert encoder.texts(["a red ball over the sea " * 40]).shape == (1, 16)


@pytest.mark.parametrize("spoil, said", [
    (lambda f: (f / "config.json").unlink(), "no image-text model"),
    (lambda f: (f / "config.json").write_text("{"), "no image-text model"),
    (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "siglip"})), "holds a siglip model"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "could not be read as a CLIP"),
    (lambda f: [p.unlink() for p in f.glob("*token*")] + [p.unlink() for p in f.glob("*vocab*")] + [p.unlink() for p in f.glob("*merges*")], "tokenizer|as a CLIP"),
    (lambda f: [p.unlink() for p in f.glob("*processor*")], "as a CLIP")])
def test_damaged_folders_are_named(clip_folder, tmp_path, spoil, said):
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in clip_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    spoil(folder)
    with pytest.raises(AnimkitError, match=said):
        Encoder.from_pretrained(folder)


def test_missing_weights_are_named(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(AnimkitError, match="lacks 1 of its CLIP's weights, first visual_projection.weight"):
        Encoder.from_pretrained(tmp_path)


def test_numbers_that_do_not_fit_are_refused(judge_folder, moving):
    encoder = Encoder.from_pretrained(judge_folder)
    with pytest.raises(AnimkitError, match="as many prompts"):
        score_clips(encoder, [moving], ["a", "b"])
    with pytest.raises(AnimkitError, match="as many prompts"):
        score_clips(encoder, [moving], "one prompt")
    with pytest.raises(AnimkitError, match="one set of references"):
        score_clips(encoder, [moving], references=[moving, moving])
    for none in ([], ()):
        with pytest.raises(AnimkitError, match="at least one picture"):
            score_clips(encoder, [moving], references=none)
        with pytest.raises(AnimkitError, match="no clip to score"):
            score_clips(encoder, none, [])
