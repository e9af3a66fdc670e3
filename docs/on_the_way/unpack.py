"""The motion module of this folder, from its difference to the one that ships: `python docs/on_the_way/unpack.py FILE`.

FILE becomes a motion module like any other (float16, the release's names of tensors); with --stage what the recipe's
stage `camera` goes on from (`runs/miniature/camera.safetensors`). A difference is stored as whole
numbers of steps, each tensor's step a quarter of the deviation of its differences: 7 % of a difference is lost.
"""
import lzma
import sys
from pathlib import Path

from safetensors.torch import load, load_file

from animkit import samples
from animkit.animator import Animator
from animkit.checkpoints import open_checkpoint, save_checkpoint
from animkit.miniature.evaluate import fingerprint
from animkit.miniature.recipe import save

BEGAN_WITH = "7a65df9382de"  # fingerprint of the module that it is the difference to


def main(out: str, stage: bool = False) -> None:
    shipped = samples.path("motion_module")
    weights = next(shipped.glob("*.safetensors"))
    if fingerprint(weights) != BEGAN_WITH:
        raise SystemExit(f"{weights} is another module than the one this is the difference to: check out the commit that "
                         "added docs/on_the_way.")
    modules = open_checkpoint(shipped).build(Animator("miniature", motion=False).video_unet).float()
    packed = load(lzma.decompress((Path(__file__).parent / "camera_module.xz").read_bytes()))
    own = modules.state_dict()
    modules.load_state_dict({name: own[name] + packed[name].float() * packed[f"{name}.step"] for name in own})
    if stage:
        return save(modules, Path(out))
    save_checkpoint(modules.half(), out, "reference", kind="motion module")
    print(f"{out}: {len(own)} tensors, a file of {len(load_file(out))}")


if __name__ == "__main__":
    main(sys.argv[1], "--stage" in sys.argv)
