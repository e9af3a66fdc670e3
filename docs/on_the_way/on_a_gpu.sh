#!/bin/bash
# For a session that is lent a GPU: the base that knows other framings and the stage `camera` on it, in one command of
# under ten minutes (guessed from what a H200 took: 3,300 steps of 1,024 pictures in 263 s, 1,551 of 128 clips in 353 s).
#
#     bash docs/on_the_way/on_a_gpu.sh $OUT
#
# Not run yet. The clips and pictures are drawn there (16 cores: some 2 minutes). What comes back goes into
# runs/miniature/ here, after `animkit miniature adopt`; README.md says what is made on it.
set -euo pipefail
out=$1
python3 -m animkit miniature adopt
python3 -m animkit miniature unet --more 1000 --batch 1024 --lr 8e-4 --count 100000
python3 -m animkit miniature camera --budget 0.25 --batch 128 --lr 1.2e-3 --count 1000   # 1,000 steps from `motion`
cp runs/miniature/{unet,camera}.{safetensors,json} "$out/"
