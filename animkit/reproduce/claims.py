"""What is claimed, notebook by notebook, with the paper's number and the rule by which it is decided here; verdicts."""
from typing import NamedTuple

from animkit.metrics.intervals import Interval

VERDICTS = {
    "holds": "the whole interval lies on the claim's side",
    "does not hold": "the whole interval lies on the other side",
    "undecided": "the interval has both sides in it; or there are too few clips (under 10) for one to mean anything; "
                 "or nothing was learned that could be compared",
    "not comparable": "measured, but not the same thing as the paper's",
    "not run": "not measured, and why",
}


class Claim(NamedTuple):
    """A claim: whose it is (the paper's section, or "ours"), what it says, the paper's number, what decides it here."""
    section: str
    says: str
    paper: str
    rule: str


# Notebook -> its claims, in the order of the report. The words are ours; `paper` has the paper's numbers.
CLAIMS: dict[str, dict[str, Claim]] = {
    "train_miniature": {
        "object": Claim("ours", "The miniature draws the object that is named", "-", "share of stills, 90 % or more"),
        "colour": Claim("ours", "... in its colour", "-", "share of stills, 90 % or more"),
        "setting": Claim("ours", "... in its place", "-", "share of stills, 95 % or more"),
        "motion": Claim("4.2",
                        "Trained on clips over a frozen image model, the motion module moves what is named as it is "
                        "named",
                        "no number",
                        "share of clips with the named motion, less chance (the motions that the other prompts name), "
                        "above 50 points"),
    },
    "qualitative": {
        "look": Claim("5.1",
                      "One motion module animates personalised models that it never met, and each keeps its look",
                      "eight models, by eye",
                      "share of frames in the look with the module, 80 % or more"),
        "motion": Claim("5.1", "... and they move as the prompt says",
                        "by eye",
                        "share of clips with the named motion, over all looks, less chance (the motions that the other "
                        "prompts name), above 50 points"),
        "shots": Claim("4.3, 5.1", "A MotionLoRA makes the camera move of its shot type",
                       "eight types, by eye",
                       "share of clips whose camera makes that move, less chance (how often the others' clips, and those "
                       "without one, make it), above 50 points"),
        "composition": Claim("4.3, 5.1", "MotionLoRAs compose: two at once make both moves",
                             "one pair, by eye",
                             "share of clips with both moves among the two largest, less the same without LoRAs, "
                             "above 50 points"),
    },
    "comparison": {
        "smooth": Claim("5.2", "AnimateDiff is the smoothest of the three methods",
                        "CLIP smooth 98.00, against 97.42 (Tune-a-Video) and 96.57 (Text2Video-Zero)",
                        "CLIP smooth less the better of the two others, prompt by prompt, above 0"),
        "domain": Claim("5.2", "... and keeps the personalised model's look best",
                        "CLIP domain 87.29, against 84.84 (Text2Video-Zero) and 80.68 (Tune-a-Video)",
                        "CLIP domain less the better of the two others, prompt by prompt, above 0"),
        "text": Claim("5.2", "... but is the furthest from the text by CLIP",
                      "CLIP text 31.39, against 35.98 (Tune-a-Video) and 32.04 (Text2Video-Zero)",
                      "CLIP text less the worse of the two others, prompt by prompt, below 0"),
        "users smoothness": Claim("5.2", "People rank it first for smoothness",
                                  "average user ranking 2.825",
                                  "mean rank score of smoothness less the better of the two others, above 0"),
        "users text": Claim("5.2", "... first for text",
                            "average user ranking 2.210",
                            "mean rank score of text less the better of the two others, above 0"),
        "users domain": Claim("5.2", "... and second for domain",
                              "average user ranking 2.280, against 2.620 (Text2Video-Zero)",
                              "mean rank score of domain less Text2Video-Zero's, below 0"),
        "still": Claim("ours",
                       "A check, which can hardly fail: CLIP smooth alone does not tell animation from a still",
                       "-",
                       "CLIP smooth of one still repeated, less AnimateDiff's, above 0"),
    },
    "domain_adapter": {
        "alpha": Claim("4.1, 5.3", "As alpha falls from 1 to 0, the videos' look fades, their watermark above all",
                       "by eye",
                       "watermark at alpha 1 less at alpha 0, in the base, prompt by prompt, above 10 points"),
        "monotone": Claim("4.1, 5.3", "... steadily",
                          "by eye",
                          "rank correlation of alpha and the mean watermark in the base, over resampled prompts, above "
                          "0.8 (of five alphas at most one neighbouring pair out of order), where it fades at all"),
        "stage": Claim("4.1",
                       "With the adapter in place in training, the motion module does not learn the videos' look",
                       "no number",
                       "watermark of a module trained without stage 1, less that of one trained on top of it (alpha "
                       "0), in the base, above 0"),
        "look": Claim("5.3", "... so that the personalised model's own look returns at alpha 0",
                      "by eye",
                      "CLIP domain at alpha 0 less at alpha 1, in a personalised look, prompt by prompt, above 0"),
    },
    "motion_module_design": {
        "amount": Claim("5.3",
                        "A temporal convolution of equal size makes all frames nearly the same, with no motion",
                        "by eye",
                        "amount of motion, convolution over Transformer, below 40 %; only if most of the "
                        "Transformer's clips are coherent"),
        "named": Claim("4.2, 5.3", "... where the temporal Transformer moves what is named",
                       "by eye",
                       "share of clips with the named motion, Transformer less convolution, above 0; only if the "
                       "Transformer's is above chance"),
        "equal": Claim("5.3", "A check, for it is so by construction: the two are of equal size",
                       "equal",
                       "parameters of the convolution over the Transformer's, within 1 %"),
    },
    "motion_lora_efficiency": {
        "rank": Claim("5.3", "A small rank does nearly as well as a large one",
                      "rank 2 (1 M) and rank 128 (36 M), by eye",
                      "shot accuracy, the small rank less the largest, above -10 points; only if the largest learned"
                      " it"),
        "few": Claim("5.3", "Five clips are too few",
                     "N = 5 degrades, N = 50 works, by eye",
                     "shot accuracy at N = 50 less at N = 5, above 0; only if N = 50 learned it"),
    },
    "control": {
        "mask": Claim("5.4", "A ControlNet of the base steers the clip frame by frame, with no further training",
                      "by eye",
                      "overlap (IoU) of the object found and the object given, 0.7 or more"),
        "steers": Claim("5.4", "... that is, the thing stands where it was told rather than anywhere",
                        "by eye",
                        "IoU less the same prompts' and noise's without control, prompt by prompt, above 0"),
        "look": Claim("5.4", "... while the look follows the prompt",
                      "by eye",
                      "share of frames in the look asked for, 80 % or more"),
    },
    "noise_schedule": {
        "mismatch": Claim("first version, 4.2",
                          "Sampling motion on the base's scaled_linear betas costs steady colours",
                          "by eye",
                          "drift of the mean colour, scaled_linear less linear, prompt by prompt, above 0"),
        "trained": Claim("first version",
                         "A motion module trained on linear betas flickers less than one trained on scaled_linear "
                         "ones",
                         "by eye",
                         "warp error, trained and sampled on scaled_linear less on linear, prompt by prompt, above 0"),
    },
    "motion_modules_per_resolution": {
        "coarse": Claim("ours",
                        "The modules at the finest resolution are those that motion can best do without",
                        "-",
                        "loss of named motions without the least needed of the coarser levels, less the loss without "
                        "the finest, above 0"),
    },
    "how_much_data": {
        "loss": Claim("ours", "The most clips leave a lower loss on clips never seen than the fewest",
                      "-",
                      "held-out loss at the fewest clips less at the most, clip by clip, above 0"),
        "motion": Claim("ours", "... and more of the named motions are there",
                        "-",
                        "share of clips with the named motion, most clips less fewest, above 0; only if the most "
                        "clips' is above chance"),
    },
}

# For the report: what was tried where a claim did not hold in the miniature. All figures: data_samples/README.md.
TRIED = {
    "qualitative": "looks of low rank in the attentions, on 50 pictures, kept 25 % of named motions in neon; with 3,000 "
                   "pictures 55 %; on the convolutions instead, 55 % with 50 pictures, and they are what ships. A motion "
                   "module trained on 198,000 more clips raised all looks from 10 to 70 % to 35 to 95 %, one that practised "
                   "in nine other looks to 80 to 95 % (20 prompts each; of 60, 72 to 90 %, after more 78 to 92, "
                   "after still more 80 to 93). MotionLoRAs on a module that had hardly seen a camera move: the right name in "
                   "15 % of 80 clips; on one trained beside an adapter for each of the eight shot types, 53 % of 96; after "
                   "practice in looks 45 %, after more 48, after still more 47. Chance is taken off, since a MotionLoRA may "
                   "unsettle the camera, which then goes anywhere.",
    "motion_lora_efficiency": "before the module had learned camera moves: ranks 8 to 32, 180 to 1,000 steps, rates 2e-3 to "
                              "1e-2, AdamW and Muon, moves of 0.1 to 0.4, all of the module in a LoRA's place, and 30 % of "
                              "unsaid camera moves in the module's own training: zooms stayed at 0.0 of the world's own move, "
                              "pans reached 0.1 to 0.5.",
    "control": "the ControlNet had 2,000 steps (24 minutes of one core); alpha of 0.5 and of 1.5, and another look, are in the "
               "table; in the base's own look, which it was trained in, things stand where they should by 0.69. More steps "
               "were not tried.",
    "comparison": "AnimateDiff on the same prompts without the look, in the notebook's table: its CLIP smooth is 94.8 there "
                  "and 90.3 in ink, so that the look itself costs smoothness; Tune-a-Video, tuned on clips in the base's own "
                  "look as films from elsewhere are, leaves ink in nine frames of ten.",
    "motion_module_design": "before it was trained with Muon at 64 pixels, it was with AdamW at 32, 900 steps of eight clips: "
                            "0.00 and 0.05 of clips had their named motion, 0.90 and 0.55 were incoherent, and nothing could be "
                            "told. The Transformer that ships had some 26,000 steps, 1,551 of them of 128 clips, and 88 % of "
                            "named motions; no convolution was trained as long.",
    "how_much_data": "at 64 pixels, 400 steps of four clips: losses of 0.0918 to 0.0924 whatever the number of clips, and no "
                     "named motion at all, all clips incoherent. At 32 pixels a step costs a quarter.",
    "domain_adapter": "rank 32 and 1,500 steps had a watermark of 28 at alpha 1, rank 64 with the timesteps that ship "
                      "31, and with 3,000 steps of twice the rate 67.",
}

LEAST = 10  # clips: a bootstrap of fewer is far too narrow to decide anything


def above(measured: Interval, threshold: float = 0.0) -> str:
    """The verdict on "above threshold", of an estimate with its interval."""
    if measured.n < LEAST:
        return "undecided" if measured.n else "not run"
    return "holds" if measured.low > threshold else "does not hold" if measured.high <= threshold else "undecided"


def below(measured: Interval, threshold: float = 0.0) -> str:
    """The verdict on "below threshold"."""
    if measured.n < LEAST:
        return "undecided" if measured.n else "not run"
    return "holds" if measured.high < threshold else "does not hold" if measured.low >= threshold else "undecided"
