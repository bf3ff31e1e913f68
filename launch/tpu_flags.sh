# Settings of the TPU runtime, to be sourced before train.py. Each stands with its reason; none is needed for right numbers.

# More of libtpu's log when a host hangs or dies: 0 = all, 3 = fatal errors only.
export TPU_MIN_LOG_LEVEL=${TPU_MIN_LOG_LEVEL:-2}
# XLA overlaps the all-gathers and reduce-scatters of run.fsdp > 1 with matrix products.
export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} --xla_tpu_enable_async_collective_fusion=true --xla_tpu_overlap_compute_collective_tc=true"
