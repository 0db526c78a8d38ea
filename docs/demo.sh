#!/usr/bin/env bash
# The main job on the embedded phantoms, with nnU-Net's own commands: healthy brains in, a tumour segmenter out.
# Usage: demo.sh [FOLDER]. A second run in the same folder continues.
set -euo pipefail

out=$(mkdir -p "${1:-demo}" && cd "${1:-demo}" && pwd)
export nnUNet_raw=$out/nnUNet_raw nnUNet_preprocessed=$out/nnUNet_preprocessed nnUNet_results=$out/nnUNet_results
export nnUNet_n_proc_DA=2 nnUNet_def_n_proc=2 nnUNet_compile=f
export SYNTHTUMOUR_EPOCHS=${SYNTHTUMOUR_EPOCHS:-12} SYNTHTUMOUR_ITERATIONS=${SYNTHTUMOUR_ITERATIONS:-25}
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
step() { printf '\n== %s\n' "$*"; }

step "1/6 phantoms: healthy brains, patients, and the truth kept apart"
synthtumour phantom "$out/phantoms" --spacing 3 --healthy 12 --unlabelled 2 --test 4

step "2/6 a raw nnU-Net data set from the healthy brains"
[ -d "$nnUNet_raw/Dataset100_Phantoms" ] ||
    synthtumour prepare -d 100 -n Phantoms --healthy "$out/phantoms/healthy" --channel FLAIR

step "3/6 nnU-Net plans and preprocesses"
[ -f "$nnUNet_preprocessed/Dataset100_Phantoms/nnUNetSmallPlans.json" ] ||
    nnUNetv2_plan_and_preprocess -d 100 -pl SmallPlanner -c 3d_fullres --verify_dataset_integrity -np 2

step "4/6 nnU-Net trains a junior: lesions grow online in healthy brains"
synthtumour preview -d 100 -p nnUNetSmallPlans -o "$out/preview" -n 12
fold=$nnUNet_results/Dataset100_Phantoms/SynthTumourTrainer__nnUNetSmallPlans__3d_fullres/fold_0
[ -f "$fold/validation/summary.json" ] ||
    nnUNetv2_train 100 3d_fullres 0 -tr SynthTumourTrainer -p nnUNetSmallPlans -device cpu --c

step "5/6 nnU-Net segments patients whose tumours nobody annotated"
nnUNetv2_predict -d 100 -c 3d_fullres -f 0 -tr SynthTumourTrainer -p nnUNetSmallPlans -device cpu \
    -i "$out/phantoms/test" -o "$out/predictions" -chk checkpoint_best.pth

step "6/6 nnU-Net compares with the truth"
nnUNetv2_evaluate_simple "$out/phantoms/test_labels" "$out/predictions" -l 1 -np 2
python -c "
import json, sys
dice = json.load(open(sys.argv[1] + '/predictions/summary.json'))['foreground_mean']['Dice']
print(f'''
Made in {sys.argv[1]}:
  preview/          what training saw, as a picture and a page
  nnUNet_results/   the trained model, progress.png, validation
  predictions/      the patients' segmentations and summary.json
Mean Dice on patients never used: {dice:.3f}''')" "$out"
