#!/usr/bin/env bash
# A template for Cloud TPU: asks for slices (a queued resource), installs, trains on all hosts, and replaces slices that were preempted.
#   NAME=sere ZONE=us-west4-a TYPE=v5litepod-64 launch/tpu_vm.sh configs/dino_sere_vits16.py:source=tfds:imagenet2012:train gs://BUCKET/runs/a [--config.key=value ...]
# SLICES=4      several slices as one run          SPOT=1   spot capacity, cheaper and preempted at any time
# RESTARTS=20   how often a stopped run is started again and preempted slices are replaced (0); it goes on from its newest checkpoint
# Needs gcloud and quota. The data must be where every host finds it: a bucket that SETUP mounts or copies, such as
#   SETUP='gcloud storage cp -r --no-clobber gs://BUCKET/tfds $HOME/tensorflow_datasets'
# Slices that ended are not deleted:  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?such as v5litepod-64}"
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}   # goes with the TPU's generation
PYTHON=${PYTHON:-python3.11}
SLICES=${SLICES:-1} SPOT=${SPOT:-} RESTARTS=${RESTARTS:-0} SETUP=${SETUP:-} WAIT_SECONDS=${WAIT_SECONDS:-30}
config=${1:?the config, as configs/NAME.py:key=value}
workdir=${2:?the directory of the run, gs://BUCKET/NAME}
shift 2
for number in SLICES RESTARTS; do [[ ${!number} =~ ^[0-9]+$ ]] || { echo "$number: found ${!number}, expected a number" >&2; exit 2; }; done
[ "$SLICES" -ge 1 ] || { echo "SLICES: found $SLICES, expected at least 1" >&2; exit 2; }
[[ $SPOT =~ ^[01]?$ ]] || { echo "SPOT: found $SPOT, expected 1 or nothing" >&2; exit 2; }
spot=; [ "$SPOT" != 1 ] || spot=--spot
[[ $workdir =~ ^(gs://.|/) ]] || { echo "the run's directory: found $workdir, expected one that all hosts see: gs://BUCKET/NAME, or a mount" >&2; exit 2; }

tpu() { gcloud compute tpus "$@" --zone="$ZONE"; }
state() { tpu queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || echo NONE; }

if [ "$SLICES" = 1 ]; then nodes=("$NAME"); else nodes=(); for ((i = 0; i < SLICES; i++)); do nodes+=("$NAME-$i"); done; fi

# Ask for the slices, unless they are there, and wait until all can be used.
provide() {
  local seen gone=0
  case "$(state)" in
    NONE) request ;;
    SUSPENDED | SUSPENDING | FAILED) again ;;
  esac
  while seen=$(state); [ "$seen" != ACTIVE ]; do
    case "$seen" in
      FAILED) echo "the request for $NAME failed: gcloud compute tpus queued-resources describe $NAME --zone=$ZONE" >&2; exit 1 ;;
      SUSPENDED | SUSPENDING) again ;;   # preempted before they were used
      NONE) [ "$((gone += 1))" -lt 5 ] || { echo "the request for $NAME is gone; was it deleted?" >&2; exit 1; } ;;
      *) gone=0 ;;
    esac
    sleep "$WAIT_SECONDS"
  done
}

again() {
  tpu queued-resources delete "$NAME" --force --quiet
  request
}

request() {
  local names=(--node-id="$NAME")
  [ "$SLICES" = 1 ] || names=(--node-prefix="$NAME" --node-count="$SLICES")
  tpu queued-resources create "$NAME" "${names[@]}" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" $spot
}

# A command on every host of every slice, all at once; fails when one fails.
everywhere() {
  local node pids=() failed=0
  for node in "${nodes[@]}"; do tpu tpu-vm ssh "$node" --worker=all --command="$1" & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || failed=$?; done
  return "$failed"
}

# The state `now` after training ended with a code. Hosts of a preempted slice end before its state says so, so it is looked at some times.
settle() {
  local look
  now=$(state)
  for ((look = 0; look < 5; look++)); do
    [ "$now" = ACTIVE ] && [ "$1" != 2 ] || return 0
    sleep "$WAIT_SECONDS"
    now=$(state)
  done
}

# Images of Ubuntu 22.04 have Python 3.10 alone: uv fetches 3.11 there.
# The TPU runtime is an extra of the pinned jax: constrained by requirements.txt, it takes the version that goes with it.
install() {
  local archive node
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --prefix=sere_jax/ -o "$archive" HEAD
  for node in "${nodes[@]}"; do tpu tpu-vm scp "$archive" "$node":sere_jax.tar.gz --worker=all; done
  rm "$archive"
  everywhere "set -e; tar xzf sere_jax.tar.gz; cd sere_jax
    test -x .venv/bin/pip || $PYTHON -m venv --clear .venv ||
      { python3 -m pip install -q --user uv; python3 -m uv venv -q --clear --seed --python 3.11 .venv; }
    .venv/bin/pip install -q -r requirements-cloud.txt; .venv/bin/pip install -q 'jax[tpu]' -c <(grep '^jax==' requirements.txt)"
  [ -z "$SETUP" ] || everywhere "$SETUP"
}

# Hosts and slices find each other by their metadata: no flags. The same command resumes.
printf -v train '%q ' .venv/bin/python train.py --config="$config" --workdir="$workdir" --stopped_exit_code=75 "$@"
for ((start = 0; ; start++)); do
  provide
  install
  code=0
  everywhere "cd sere_jax && source launch/tpu_flags.sh && export JAX_COMPILATION_CACHE_DIR=~/jax-cache && exec $train" || code=$?
  [ "$code" != 0 ] || { echo "finished: $workdir"; exit 0; }
  settle "$code"
  # Slices that are still there: a run that was stopped by a signal (maintenance) goes on there. Another one failed, and would fail again.
  [ "$now" != ACTIVE ] || [ "$code" = 75 ] || { echo "train.py failed with code $code; the slices are still there" >&2; exit "$code"; }
  [ "$start" -lt "$RESTARTS" ] || { echo "the slices are $now after $start restarts; the same command goes on" >&2; exit 75; }
  echo "the slices are $now: starting again" >&2
done
