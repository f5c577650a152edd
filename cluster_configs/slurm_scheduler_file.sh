#!/usr/bin/env bash
# A landscape from the CPU cores, or the GPUs, of several Slurm nodes.
#
#     sbatch slurm_scheduler_file.sh WORKDIR EPOCH RUN [options of `scapedist run`]
#
# One Dask scheduler, the workers, and `scapedist run`, which finds them through a scheduler file.
# WORKDIR and RUN lie on a file system that all nodes share; `scapedist` and `dask` are on the PATH
# (activate the environment before sbatch, or below). After a time limit or a failure, submit the
# same line again: it goes on where it was.
#
# Lines to adapt: nodes, tasks, memory and time. Partition and account may be needed too.
#SBATCH --job-name=scapedist
#SBATCH --time=04:00:00
#SBATCH --output=scapedist-%j.log
#SBATCH --nodes=2
# On CPU cores: one worker a task. A worker computes on one thread (that keeps results the same on
# any machine), so it has one core. `scapedist plan WORKDIR EPOCH` says what memory it needs.
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
# On GPUs: these four lines (take one # away) in place of the three above. One task a node starts a
# worker on each of its GPUs. The environment has the extra cuda13 or cuda12.
##SBATCH --gpus-per-node=4
##SBATCH --ntasks-per-node=1
##SBATCH --cpus-per-task=8
##SBATCH --mem=64G

set -euo pipefail
if (($# < 3)); then
    sed -n '2,/^#SBATCH/ { /^#SBATCH/d; s/^# \{0,1\}//; p }' "$0" >&2
    exit 2
fi
workdir=$1 epoch=$2 run=$3
shift 3

# What belongs to this job alone: the scheduler file and the key. Dask runs what whoever can connect
# sends it, and a node's ports can be reached by all its users, so nobody connects without the key.
umask 077
private=$(mktemp -d "$PWD/scapedist-${SLURM_JOB_ID:-job}-XXXXXX")
end() {
    for job in $(jobs -p | tac); do # the workers before their scheduler
        kill "$job" 2>/dev/null || true
        wait "$job" || true
    done
    rm -rf "$private"
}
trap end EXIT
scheduler_file=$private/scheduler.json

openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=scapedist \
    -keyout "$private/key.pem" -out "$private/cert.pem" 2>/dev/null
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$private/cert.pem
for role in SCHEDULER WORKER CLIENT; do
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$private/cert.pem"
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$private/key.pem"
done

# A free port on this node; status pages on loopback only (look at them through an SSH tunnel).
dask scheduler --protocol tls --host "$(hostname)" --port 0 \
    --dashboard-address 127.0.0.1:0 --scheduler-file "$scheduler_file" &
scheduler=$!
for ((i = 0; i < 120; i++)); do
    [[ -s $scheduler_file ]] && break
    kill -0 "$scheduler" 2>/dev/null || { echo "The scheduler did not start." >&2; exit 1; }
    sleep 1
done

# What Slurm gave the job decides. `dask cuda worker` starts a worker for each GPU that it sees;
# torch and CuPy share one pool of its memory.
gpus=${SLURM_GPUS_ON_NODE:-0}
workers=(--scheduler "$scheduler_file")
if ((gpus > 0)); then
    worker=(dask cuda worker --rmm-pool-size 0.8 --rmm-track-allocations
        --set-rmm-allocator-for-libs torch,cupy)
    memory=$((${SLURM_MEM_PER_NODE:-65536} / gpus))
    workers+=(--gpus all)
else
    worker=(dask worker --nworkers 1)
    memory=${SLURM_MEM_PER_CPU:-4096}
fi
# Workers leave by themselves when the scheduler has been gone for a minute.
srun "${worker[@]}" --protocol tls --scheduler-file "$scheduler_file" --nthreads 1 \
    --memory-limit "${memory}MiB" --local-directory "${TMPDIR:-/tmp}" \
    --no-dashboard --dashboard-address 127.0.0.1:0 --death-timeout 60 &

scapedist run "$workdir" "$epoch" --output "$run" "${workers[@]}" "$@"
