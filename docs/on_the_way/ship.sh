#!/bin/bash
# All that stands on runs/miniature/{unet,camera}.safetensors, in order, on two cores: some two hours. Each stage goes on
# where it stopped, so the same command goes on. Run it from the top of the checkout; `git checkout data_samples` undoes it.
#
# First set in configs/miniature.yaml, motion_lora: amount 0.2, towards_noise 0.5, data.batch 2, training.lr 5e-3,
# training.steps 280. After it: reproduce/laptop (four hours of a core), the READMEs' figures, a look at every sheet.
set -euo pipefail
export OMP_NUM_THREADS=1
core() { taskset -c "$1" .venv/bin/python -m animkit "${@:2}" --threads 1; }

core 0 miniature assemble
core 0 miniature adapter motion_web & core 1 miniature look motion_plain; wait $!
core 0 miniature zoo
if [ ! -e runs/miniature/control-anew ]; then  # the ControlNet of the base before is not gone on with
  rm -rf runs/miniature/control runs/miniature/control.json; touch runs/miniature/control-anew
fi
core 0 miniature shots & { core 1 miniature control; core 1 judge stills; core 1 judge motion; }; wait $!
core 0 miniature assemble zoo
{ core 0 judge shots; core 0 judge shots --guided 6; } & { core 1 judge adapter; core 1 judge looks; core 1 judge cost; }; wait $!
