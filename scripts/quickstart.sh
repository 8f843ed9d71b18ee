#!/usr/bin/env bash
# The whole path on the embedded miniature: clips, caches, LoRA, rendered video. Works from any folder.
#
#   scripts/quickstart.sh               on small clips of things in orange, which the miniature has never seen
#   scripts/quickstart.sh CLIPS_DIR     on your own: videos with a caption of the same name in a .txt beside
#
# Everything it makes lies in quickstart/ (or $LONGCAT_TUNE_QUICKSTART), in a folder per source of clips. A second
# run goes on where the first one ended and does nothing twice.
set -euo pipefail
clips=${1:+$(cd "$1" && pwd)}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment

work=${LONGCAT_TUNE_QUICKSTART:-quickstart}/$(basename "${clips:-demo}")
mkdir -p "$work"
cd "$work"
config=config/config.json

# The miniature's tensors are small: a second thread waits more than it computes (0.17 s a step becomes 1 s).
command -v nvidia-smi > /dev/null || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

step() { printf '\n== %s\n' "$*"; "$@"; }

if [ ! -f "$config" ]; then
    if [ -n "$clips" ]; then
        step longcat-tune init "$clips" --model_flavour tiny
    else
        step longcat-tune init clips --demo --model_flavour tiny
    fi
fi
step longcat-tune check --config "$config"
step longcat-tune cache-latents --config "$config"
step longcat-tune train --config "$config"
step longcat-tune validate --config "$config" --lora longcat-tune-results/pytorch_lora_weights.safetensors

results=$work/longcat-tune-results
cat << END

Done. In $results:
  the LoRA    pytorch_lora_weights.safetensors
  the page    validation/index.html: every render, by step, base against LoRA
  the grid    $(cd longcat-tune-results && ls -d validation/step_*/compare.png | tail -n 1): before and after, same seed
  the record  events.jsonl, one line per step

Next, on a machine with a GPU, the same with the real model:
  source .venv/bin/activate
  longcat-tune init CLIPS_DIR && longcat-tune train --config config/config.json
END
