#!/usr/bin/env bash
# The whole pipeline on the embedded phantoms: two folders of images in, a senior, its predictions and a report out.
# Usage: demo.sh [FOLDER]. A second run in the same folder continues.
set -euo pipefail

out=$(mkdir -p "${1:-demo}" && cd "${1:-demo}" && pwd)
unset nnUNet_raw nnUNet_preprocessed nnUNet_results
export nnUNet_n_proc_DA=1 nnUNet_def_n_proc=1 nnUNet_compile=f

# At 4 mm, with few features, a step takes a fraction of a second on any two cores, so that both stages get far enough for
# the second to matter.
synthtumour phantom "$out/phantoms" --spacing 4 --healthy 12 --unlabelled 16 --test 8
synthtumour run --healthy "$out/phantoms/healthy" --unlabelled "$out/phantoms/unlabelled" \
    --test "$out/phantoms/test" --test-labels "$out/phantoms/test_labels" \
    -d 100 -n Phantoms -o "$out/run" -device cpu -pl TinyPlanner -np 1 \
    --set training.epochs="${SYNTHTUMOUR_EPOCHS:-12}" --set senior.epochs="${SYNTHTUMOUR_EPOCHS:-60}" \
    --set training.iterations="${SYNTHTUMOUR_ITERATIONS:-25}" --set validation.patches=8 --set training.seed=0
