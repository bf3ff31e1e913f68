# For the templates of Slurm: `requeued COMMAND` runs it as this job, and queues the job again where the command was stopped.
# Slurm's signal (#SBATCH --signal=B:USR1@SECONDS) is passed on as SIGTERM. A run that trains saves then and ends with 0; what saves nothing,
# such as prepare or a program that still starts, ends with 143. What fails by itself, or what scancel ends, is not queued again; after the
# failure of a node Slurm does it, because of --requeue.

asked=
trap 'asked=${asked:-$SECONDS}' USR1     # before anything slow, so that no signal is lost

# Of an array, each task is a job; the bare number of its last one means the whole array.
job=${SLURM_JOB_ID:?}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}; fi
# Since Slurm 22.05 srun does not take over --cpus-per-task of the job: the data workers of a task would share one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

requeued() {
  local step again=0 code=0
  "$@" &
  step=$!
  while kill -0 "$step" 2>/dev/null; do
    if [ -n "$asked" ] && [ "$SECONDS" -ge "$again" ]; then
      scancel --signal=TERM "$job" || echo "scancel failed, and is repeated" >&2
      again=$((SECONDS + 10))      # a step that had not begun has heard nothing
    fi
    sleep 1 &
    wait $! || true                # the signal ends it
  done
  wait "$step" || code=$?
  if [ -n "$asked" ]; then
    echo "the run ended $((SECONDS - asked)) s after the signal; --signal has to give more"
    case $code in 0 | 143) scontrol requeue "$job" ;; esac
  fi
  exit "$code"
}
