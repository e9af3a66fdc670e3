"""`animkit judge adapter|looks|shots|cost`: does the zoo do what the paper says? Bars to reach, with their numbers.

    adapter   4.1: the watermark and the look in clips, with the adapter's alpha at 0, .25, .5, .75, 1, and with the
              module that was trained without an adapter; a watermark of 100 is the training videos', 0 clean renders'
    looks     5.1: one motion module in the base and in each look: motion, look and text, beside that look's stills
    shots     4.3: the camera's move, estimated from the clip, with each MotionLoRA; two at once; three alphas; none
    cost      minutes and memory of what was trained, from recipe.json

All columns have the same scenes and the same noise, and the same prompts (but the base beside looks: its prompts name one of its
own, and are worded anew): they differ only in what they name.
"""
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .. import samples
from ..data import camera
from ..errors import AnimkitError
from ..metrics.camera import FULL, LEAST, NAMES, camera_path, name_shot
from ..metrics.intervals import share
from ..metrics.stabilise import stabilised
from ..metrics.watermark import watermark_score
from ..opening import best_device
from ..record import record
from ..show.filmstrip import Picture
from ..world import render
from ..world.web import degrade
from .camera import AMOUNT
from .clip import COLOURLESS
from .evaluate import FRAMES, PRECISIONS, draw, fingerprints, flicker, in_rows, number, open_animator
from .judge import TEXT, Judge, asked, names_its_look, text_found, truth
from .zoo import NEW_LOOKS

COUNTS = {"adapter": 20, "looks": 20, "shots": 20, "cost": 0}
ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.0)
COMPOSED = ("zoom in", "roll clockwise")
FEW = 4  # prompts to try a MotionLoRA's alpha on; also real clips of each shot type


def judge_adapter(folder: Path, judge: Judge, count: int, seed: int, batch: int, look: str | None,
                  steps: int | None, dtype: torch.dtype = torch.float32) -> tuple[dict, Picture]:
    """4.1: what is left of the web videos' look, for each alpha, and for the ablation's module, trained without an adapter."""
    plain = _file(folder, "motion_module_plain.safetensors", "motion_plain")
    adapter = _file(folder, "domain_adapter.safetensors", "adapter")
    prompts, scenes = map(list, zip(*asked(count, seed, look=look is None)))
    scenes = [s if look is None else s.with_(look=look) for s in scenes]
    named = np.array([look is not None or names_its_look(*each) for each in zip(prompts, scenes)])
    animator = open_animator(folder, motion=True, look=look, dtype=dtype)
    animator.insert(adapter, name="domain adapter")
    drawn = {}
    for alpha in ALPHAS:
        animator.alpha["domain adapter"] = alpha
        drawn[f"alpha {alpha:g}"] = _draw(animator, prompts, FRAMES, seed, batch, steps, f"alpha {alpha:g}")
    animator.remove("domain adapter")
    animator.insert(plain, name="motion")
    drawn["trained without"] = _draw(animator, prompts, FRAMES, seed, batch, steps, "trained without")

    clean = [render(scene, FRAMES, drawn["trained without"].shape[2]).rgb for scene in scenes]
    mark = {"clean renders": _uint8(clean), "web video": _uint8([degrade(rgb) for rgb in clean])}

    scores = {}
    for whose, clips in {**drawn, **mark}.items():
        shown = judge.pictures(_frames(clips))
        looks = _each([found == scenes[k // FRAMES].look for k, found in enumerate(shown["look"])])
        found = judge.motion(clips)
        scores[whose] = {"watermark": number(watermark_score(clips, mark["web video"], mark["clean renders"])),
                         "look": share(looks[named]),
                         "named motion": share([f == truth(s, "motion") for f, s in zip(found, scenes)]),
                         **{a: share(r) for a, r in text_found(shown, scenes, _readable(look)).items()}}
    marks = {whose: column["watermark"]["mean"] for whose, column in scores.items()}
    curve = [marks[f"alpha {alpha:g}"] for alpha in ALPHAS]
    faithful = [scores[f"alpha {alpha:g}"]["look"]["share"] or 0 for alpha in ALPHAS]  # None if no prompt names a look
    bars = [_bar("watermark at alpha 1", ">= 60", curve[0], curve[0] >= 60),
            _bar("watermark at alpha 0", "<= 10", curve[-1], curve[-1] <= 10),
            _bar("watermark from alpha 1 to 0", "falls at each step", curve,
                 all(a > b for a, b in zip(curve, curve[1:]))),
            _bar("watermark of the module trained without the adapter", ">= 25", marks["trained without"],
                 marks["trained without"] >= 25),
            _bar("look accuracy from alpha 1 to 0", "rises", faithful,
                 faithful[-1] > faithful[0] and all(b >= a - 0.02 for a, b in zip(faithful, faithful[1:])))]
    rows = {whose: {f"frame {j + 1}": clips[0, j] for j in range(0, FRAMES, 4)}
            for whose, clips in {**drawn, **mark}.items()}
    said = f"One prompt, one noise: {prompts[0]}; the adapter's alpha from 1 to 0, the module without it, real renders"
    return {"scores": scores, "bars": bars}, in_rows(rows, said)


def judge_looks(folder: Path, judge: Judge, count: int, seed: int, batch: int, only: str | None,
                steps: int | None, dtype: torch.dtype = torch.float32, eased: float | None = None) -> tuple[dict, Picture]:
    """5.1: the same motion module in the base and in each look (or only one), beside the stills of the same prompts.

    eased: the module's share of alpha in the last half of the timesteps (animator(eased=)); None: all, as in the paper."""
    there = [look for look in NEW_LOOKS if (folder / "looks" / f"{look}.safetensors").exists()]
    if not there:
        raise AnimkitError(f"There is no look in {folder / 'looks'}: train them with `animkit miniature look zoo`.")
    scores, rows, bars = {}, {}, []
    for look in [only] if only else [None, *there]:
        prompts, scenes = map(list, zip(*asked(count, seed, look=look is None)))
        scenes = [s if look is None else s.with_(look=look) for s in scenes]
        named = np.array([look is not None or names_its_look(*each) for each in zip(prompts, scenes)])
        animator = open_animator(folder, look=look, dtype=dtype)
        stills = _draw(animator, prompts, 1, seed, batch, steps, f"{look or 'base'}, stills")
        open_motion = open_animator(folder, motion=True, look=look, dtype=dtype)
        late = None if eased is None else {"motion": eased}
        clips = _draw(open_motion, prompts, FRAMES, seed, batch, steps, f"{look or 'base'}, clips", eased=late)
        whose = look or "base"
        scores[whose] = {}
        for said, pictures in (("stills", stills), ("clips", clips)):
            shown = judge.pictures(_frames(pictures))
            f = pictures.shape[1]
            looks = _each([found == scenes[k // f].look for k, found in enumerate(shown["look"])], f)
            text = text_found(shown, scenes, _readable(look))
            scores[whose] |= {f"{said}: look": share(looks[named]), f"{said}: text": share(text["all of these"]),
                              **{f"{said}: {a}": share(text[a]) for a in _readable(look)}}
        found = judge.motion(clips)
        scores[whose]["named motion"] = share([f == truth(s, "motion") for f, s in zip(found, scenes)])
        scores[whose]["clips: flicker (warp error, % of white)"] = flicker(clips)
        rows[whose] = {"still": stills[0, 0], **{f"frame {j + 1}": clips[0, j] for j in range(0, FRAMES, 3)}}
        got = {name: score["share"] for name, score in scores[whose].items() if "share" in score}
        bars.append(_bar(f"{whose}: named motion", ">= 80 %", got["named motion"], got["named motion"] >= 0.8))
        for name in ("look", "text"):
            if got[f"clips: {name}"] is not None:
                lost = round(got[f"stills: {name}"] - got[f"clips: {name}"], 4)  # else 0.8 - 0.7 > 0.1
                bars.append(_bar(f"{whose}: {name} accuracy, stills less clips", "<= 10 points", 100 * lost,
                                 lost <= 0.1))
    if not only:
        bars.append(_bar("looks", "8", len(there), len(there) == 8))
    return {"scores": scores, "bars": bars}, in_rows(rows, f"One prompt, one noise, in each look: {prompts[0]}")


def judge_shots(folder: Path, judge: Judge, count: int, seed: int, batch: int,
                steps: int | None, dtype: torch.dtype = torch.float32,
                guided: float | None = None) -> tuple[dict, Picture]:
    """4.3: which way the camera goes with each MotionLoRA and how far; do objects still do what the prompt says?

    guided: the weight of each MotionLoRA as a separate condition (animator(guided=)); None: its alpha alone, as in the paper."""
    files = {shot: folder / "motion_loras" / f"{shot.replace(' ', '-')}.safetensors" for shot in camera.SHOTS}
    files = {shot: file for shot, file in files.items() if file.exists()}
    if not files:
        raise AnimkitError(f"There is no MotionLoRA in {folder / 'motion_loras'}: train them with `animkit miniature "
                           "shots zoo`.")
    prompts, scenes = map(list, zip(*asked(count, seed, look=False)))
    named = [truth(s, "motion") for s in scenes]
    animator = open_animator(folder, motion=True, dtype=dtype)

    def drawn(shots: dict[str, float], said: str, only: int | None = None) -> np.ndarray:
        for shot, alpha in shots.items():
            animator.insert(files[shot], alpha=alpha, name=shot)
        weights = None if guided is None else dict.fromkeys(shots, guided)
        clips = _draw(animator, prompts[:only], FRAMES, seed, batch, steps, said, guided=weights)
        for shot in shots:
            animator.remove(shot)
        return clips

    clips = {"no MotionLoRA": drawn({}, "no MotionLoRA")}
    clips |= {shot: drawn({shot: 1.0}, shot) for shot in files}
    if set(COMPOSED) <= set(files):
        clips[" + ".join(COMPOSED)] = drawn(dict.fromkeys(COMPOSED, 1.0), " + ".join(COMPOSED))
    moves = {whose: [camera_path(clip, steady=True).moves for clip in each] for whose, each in clips.items()}
    scores = {whose: _shot_scores(judge, each, moves[whose], named, whose) for whose, each in clips.items()}
    still = np.stack([render(scene, FRAMES, clips["no MotionLoRA"].shape[2]).uint8 for scene in scenes])
    paths = [camera_path(clip, steady=True).moves for clip in still]
    scores["real clips, still camera"] = _shot_scores(judge, still, paths, named, "none")
    real, shots, motions = zip(*_real(FEW, seed, clips["no MotionLoRA"].shape[2]))
    paths = [camera_path(clip, steady=True).moves for clip in real]
    right = [name_shot(m, 0)[0] == shot for m, shot in zip(paths, shots)]
    scores["real clips, moved by crops"] = {
        "shot type": share(right), **_object_motion(judge, np.stack(real), motions),
        **{name: number([abs(m[name]) for m, s in zip(paths, shots) if s in NAMES[name]]) for name in FULL}}

    amounts, bars = {}, []
    for shot in files:
        name, sign = next((n, 1 - 2 * two.index(shot)) for n, two in NAMES.items() if shot in two)
        few = min(FEW, count)
        tried = {0.0: clips["no MotionLoRA"][:few], 1.0: clips[shot][:few]}
        tried |= {alpha: drawn({shot: alpha}, f"{shot}, alpha {alpha:.2g}", few) for alpha in (1 / 3, 2 / 3)}
        far = {alpha: np.mean([sign * camera_path(c, steady=True).moves[name] for c in each]) for alpha, each in tried.items()}
        amounts[shot] = {f"{alpha:.2g}": round(float(far[alpha]), 4) for alpha in sorted(far)}
        curve = list(amounts[shot].values())
        bars.append(_bar(f"{shot}: its move at alpha 0, 1/3, 2/3, 1", "rises at each step", curve,
                         all(a < b for a, b in zip(curve, curve[1:]))))
    # A prompt is the unit, not a clip: its clips of all shot types come from one noise.
    all_right, all_moving = (np.mean([scores[s][each]["right"] for s in files], 0) for each in ("shot type", "named motion"))
    summary = {"shot type": share(all_right), "named motion": share(all_moving)}
    bars = [_bar("MotionLoRAs", "8", len(files), len(files) == 8),
            _bar("the right shot type out of eight", ">= 90 %", summary["shot type"]["share"], all_right.mean() >= 0.9),
            _bar("object's motion as prompted", ">= 70 %", summary["named motion"]["share"], all_moving.mean() >= 0.7),
            *bars, *_still_bars(moves, files)]
    if " + ".join(COMPOSED) in scores:
        both = scores[" + ".join(COMPOSED)]["shot type"]["share"]
        bars.append(_bar(" + ".join(COMPOSED), "both in most clips (>= 50 %)", both, both >= 0.5))
    for column in scores.values():
        for score in column.values():
            score.pop("right", None)
    rows = {whose: {f"frame {j + 1}": each[0, j] for j in range(0, FRAMES, 3)} for whose, each in clips.items()}
    return {"scores": scores, "all MotionLoRAs": summary, "moves by alpha": amounts, "bars": bars}, in_rows(
        rows, f"One prompt, one noise, with each MotionLoRA: {prompts[0]}")


def _shot_scores(judge: Judge, clips: np.ndarray, moves: list[dict], named: list[str], whose: str) -> dict:
    """Scores of clips drawn with one MotionLoRA, two ("a + b") or none, which leaves no shot type to find."""
    wanted = set(whose.split(" + ")) & set(camera.SHOTS)
    least = 1e-6 if len(wanted) == 1 else LEAST  # one: the largest move counts, however small, but not none; two: at least LEAST
    right = [set(name_shot(m, least)[:len(wanted)]) == wanted for m in moves] if wanted else []
    return {"shot type": share(right) | {"right": np.array(right, float)}, **_object_motion(judge, clips, named),
            **{name: number([abs(m[name]) for m in moves]) for name in FULL}}


def _object_motion(judge: Judge, clips: np.ndarray, named) -> dict:
    """The share of named motions that the judge finds, with the estimated camera move removed, and with it left in."""
    steady = [f == n for f, n in zip(judge.motion(np.stack([stabilised(clip) for clip in clips])), named)]
    as_is = [f == n for f, n in zip(judge.motion(clips), named)]
    return {"named motion": share(steady) | {"right": np.array(steady, float)},
            "named motion, camera's move left in": share(as_is)}


def _still_bars(moves: dict[str, list[dict]], files: dict) -> Iterator[dict]:
    """The bars for: without a MotionLoRA, each kind of move is under a tenth of what its two MotionLoRAs make."""
    for name, two in NAMES.items():
        if trained := [shot for shot in two if shot in files]:
            with_it = np.mean([abs(m[name]) for shot in trained for m in moves[shot]])
            without = np.mean([abs(m[name]) for m in moves["no MotionLoRA"]])
            yield _bar(f"|{name}| without a MotionLoRA, of |{name}| with", "< 10 %", without / max(with_it, 1e-6),
                       without < 0.1 * with_it)


def _real(each: int, seed: int, size: int) -> Iterator[tuple[np.ndarray, str, str]]:
    """Real clips of every shot type, moved as the MotionLoRAs' training clips are, of scenes not among those."""
    for k, (_, scene) in enumerate(asked(each * 8, seed + 1)):
        shot = camera.SHOTS[k % 8]
        large = torch.from_numpy(render(scene, FRAMES, 2 * size).uint8).permute(3, 0, 1, 2)
        moved = camera.apply(large, camera.crop_path(shot, FRAMES, AMOUNT), size)
        yield moved.permute(1, 2, 3, 0).numpy(), shot, truth(scene, "motion")


def judge_cost(folder: Path) -> dict:
    """What was trained, in how many minutes and how much memory, against bars for two cores.

    Raises AnimkitError for a recipe.json that is missing or damaged."""
    most, path = {"look": 3, "shots": 6}, folder / "recipe.json"
    scores, bars = {}, []
    try:
        for name, part in json.loads(path.read_text()).items():
            if "command" in part:
                minutes = part["seconds"] / 60
                scores[name] = {"minutes": round(minutes, 2), "minutes preparing": part["minutes_preparing"],
                                "steps": part["steps"], "peak memory MB": part["peak_memory_mb"], "device": part["device"]}
                if limit := most.get(part["stage"]):
                    bars.append(_bar(f"{name}: minutes", f"<= {limit}", minutes, minutes <= limit))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise AnimkitError(f"{path} is missing or does not tell how each part was trained: `animkit miniature zoo` writes it.") from e
    for path in sorted((folder / "results").glob("motion-*.json")):
        result = json.loads(path.read_text())
        made = result["parameters"].get("module", {}).get("training")
        if made and made["start"] is None:
            scores[path.stem] = {"minutes": made["minutes"], "minutes preparing": made["minutes_preparing"],
                                 "steps": made["steps"], "peak memory MB": made["peak_memory_mb"],
                                 "device": f"{made['processes']} processes, each {made['device']}"}
            minutes = made["minutes"] + made["minutes_preparing"]
            found = result["metrics"]["scores"]["with the module"]["named motion"]["share"]
            bars.append(_bar(f"{path.stem}, a motion module from nothing: minutes with preparation, motions found",
                             "<= 30, >= 60 %", [minutes, found], minutes <= 30 and found >= 0.6))
    return {"scores": scores, "bars": bars}


# ---- small things

def _judge(folder: Path) -> Judge:
    return Judge.from_pretrained(folder / "judge")


def _file(folder: Path, name: str, stage: str) -> Path:
    if not (folder / name).exists():
        raise AnimkitError(f"There is no {folder / name}: train it with `animkit miniature {stage} zoo`.")
    return folder / name


def _draw(animator, prompts, frames, seed, batch, steps, said, **how) -> np.ndarray:
    animator.defaults |= {"steps": steps} if steps is not None else {}
    return draw(animator, prompts, frames, seed, batch, said, **how)


def _uint8(clips) -> np.ndarray:
    return (np.stack(clips) * 255 + 0.5).astype(np.uint8)


def _frames(clips: np.ndarray) -> np.ndarray:
    return clips.reshape(-1, *clips.shape[2:])


def _each(right: list[bool], frames: int = FRAMES) -> np.ndarray:
    """For each clip, the share of its frames that are right."""
    return np.array(right, float).reshape(-1, frames).mean(1)


def _readable(look: str | None) -> tuple[str, ...]:
    return tuple(a for a in TEXT if a != "colour" or look not in COLOURLESS)


def _bar(bar: str, wanted: str, found, holds) -> dict:
    return {"bar": bar, "wanted": wanted, "found": np.round(found, 4).tolist(), "holds": bool(holds)}


def run(args) -> int:
    """Judge, write WHAT.json and the sheet WHAT.webp, print the table. AnimkitError for what is missing."""
    what, start = args.what, time.monotonic()
    count = COUNTS[what] if args.count is None else args.count
    if what != "cost" and min(count, args.batch) < 1:
        raise AnimkitError(f"--count and --batch are at least 1; got {count} and {args.batch}.")
    if args.look and what not in ("adapter", "looks"):
        raise AnimkitError(f"--look does not go with `animkit judge {what}`.")
    dtype = PRECISIONS[args.precision]
    folder, picture = samples.root() if args.folder is None else args.folder, None
    if what == "cost":
        report = judge_cost(folder)
    elif what == "shots":
        report, picture = judge_shots(folder, _judge(folder), count, args.seed, args.batch, args.steps, dtype,
                                      args.guided)
    elif what == "looks":
        report, picture = judge_looks(folder, _judge(folder), count, args.seed, args.batch, args.look, args.steps, dtype,
                                      args.eased)
    else:
        report, picture = judge_adapter(folder, _judge(folder), count, args.seed, args.batch, args.look, args.steps, dtype)
    ways = [way for way in ("guided", "eased") if getattr(args, way) is not None]  # the paper's result keeps its own file
    out = args.out
    name = "-".join([what, *([args.look] if args.look else []), *ways])
    options = {"look": args.look, "count": count or None, "seed": args.seed if count else None, "steps": args.steps,
               "guided": args.guided, "eased": args.eased,
               "precision": None if args.precision == "float32" else args.precision}
    said = f"animkit judge {what}" + "".join(f" --{k} {v}" for k, v in options.items() if v is not None)
    record(out / f"{name}.json", {"command": said, **options, "weights": fingerprints(folder)}, report,
           {"all": time.monotonic() - start}, "cpu" if what == "cost" else str(best_device()))
    written = [out / f"{name}.json"] if picture is None else [out / f"{name}.json", picture.save(out / f"{name}.webp")]
    print(f"{table(report)}\n\n{', '.join(map(str, written))}")
    return 0


def table(report: dict) -> str:
    """The bars, then every score, a line each."""
    def cell(s):
        if not isinstance(s, dict):
            return f"{s}"
        if "mean" in s:
            return f"{s['mean']:.3g} ({s['low']:.3g} to {s['high']:.3g})" if s["n"] else "-"
        return f"{100 * s['share']:.1f} % ({100 * s['low']:.0f} to {100 * s['high']:.0f})" if s["n"] else "-"

    lines = [f"{'holds' if bar['holds'] else 'FAILS'}  {bar['bar']}: {bar['found']}, wanted {bar['wanted']}"
             for bar in report["bars"]]
    for whose, column in report["scores"].items():
        lines += ["", whose, *[f"  {name:40} {cell(score)}" for name, score in column.items()]]
    return "\n".join(lines)
