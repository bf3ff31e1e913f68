# Settings of NCCL and of XLA's GPU compiler, to be sourced before train.py. Each stands with its reason; none is needed for right numbers.

# NCCL says which interface and which algorithm it takes, once at the start: the first thing to look at where nodes do not find each other.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Where a node has several networks (lo, docker0, eth0, ib0), NCCL may choose one that does not reach the others. Set it to yours.
#   export NCCL_SOCKET_IFNAME=eth0
# XLA orders kernels so that collectives run beside matrix products.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
# JAX takes three quarters of a GPU's memory at the start. Set it to 0.9 where training alone uses the GPU and memory is short.
#   export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
