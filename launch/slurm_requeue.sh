# For the templates of Slurm: `requeued COMMAND` runs it as this job, and queues the job again where the command was stopped.
# Slurm's signal (#SBATCH --signal=B:USR1@SECONDS) is passed on as SIGTERM. train.py and ablate save then and end with 0; prepare ends with 143.
# What fails by itself, or what scancel ends, is not queued again.

# Of an array, each task is a job; the bare number of its last one means the whole array.
job=${SLURM_JOB_ID:?}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}; fi
# Since Slurm 22.05 srun does not take over --cpus-per-task of the job: the data workers of a task would share one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

requeued() {
  local asked= step code=138     # what `wait` returns when the signal breaks it off; of a command that has ended it is the command's own
  trap 'asked=$SECONDS; scancel --signal=TERM "$job"' USR1
  "$@" &
  step=$!
  while [ "$code" = 138 ]; do
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2>/dev/null || break
  done
  if [ -n "$asked" ]; then
    echo "the run ended $((SECONDS - asked)) s after the signal; --signal has to give more"
    case $code in 0 | 143) scontrol requeue "$job" ;; esac
  fi
  exit "$code"
}
