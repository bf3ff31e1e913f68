#!/usr/bin/env bash
# A template for a Cloud TPU slice: makes it, installs, trains on all hosts, and deletes nothing.
#   NAME=sere ZONE=us-west4-a TYPE=v5litepod-64 launch/tpu_vm.sh configs/dino_sere_vits16.py:source=folder:/mnt/bucket/train /mnt/bucket/runs/a [--config.key=value ...]
# Needs gcloud, quota, and a bucket that is mounted on every host (BUCKET) for the data and the run. Delete the slice yourself:
#   gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?such as v5litepod-64}"
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}   # goes with the TPU's generation
PYTHON=${PYTHON:-python3.11}
config=${1:?the config, as configs/NAME.py:key=value}
workdir=${2:?the directory of the run, seen by all hosts}
shift 2

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" >/dev/null 2>&1 \
  || gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$RUNTIME"

git archive --format=tar.gz --prefix=sere_jax/ -o /tmp/sere_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/sere_jax.tar.gz "$NAME":sere_jax.tar.gz --zone="$ZONE" --worker=all

# The TPU runtime is an extra of the pinned jax: constrained by requirements.txt, it takes the version that goes with it.
everywhere "tar xzf sere_jax.tar.gz && cd sere_jax && { test -d .venv || $PYTHON -m venv .venv; }
  .venv/bin/pip install -q -r requirements.txt && .venv/bin/pip install -q 'jax[tpu]' -c <(grep '^jax==' requirements.txt)"
if [ -n "${BUCKET:-}" ]; then
  everywhere "sudo mkdir -p /mnt/bucket && sudo chown \$USER /mnt/bucket && (mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs '$BUCKET' /mnt/bucket)"
fi

# Hosts find each other by the metadata of the slice: no flags. The same command resumes.
printf -v command '%q ' .venv/bin/python train.py --config="$config" --workdir="$workdir" "$@"
everywhere "cd sere_jax && $command"
