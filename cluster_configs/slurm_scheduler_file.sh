#!/usr/bin/env bash
# A landscape from the CPU cores of several Slurm nodes.
#
#     sbatch slurm_scheduler_file.sh WORKDIR EPOCH RUN [options of `scapedist run`]
#
# One Dask scheduler, one worker for each Slurm task, and `scapedist run`, which finds them through
# a scheduler file. WORKDIR and RUN lie on a file system that all nodes share; `scapedist` and
# `dask` are on the PATH (activate the environment before sbatch, or below). After a time limit or
# a failure, submit the same line again: it goes on where it was.
#
# Lines to adapt: nodes, tasks, memory and time. Partition and account may be needed too.
#SBATCH --job-name=scapedist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=16
# A worker computes on one thread (that keeps results the same on any machine): one core a task.
#SBATCH --cpus-per-task=1
# `scapedist plan WORKDIR EPOCH` says what a worker needs.
#SBATCH --mem-per-cpu=4G
#SBATCH --time=04:00:00
#SBATCH --output=scapedist-%j.log

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
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$private"' EXIT
scheduler_file=$private/scheduler.json

openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=scapedist \
    -keyout "$private/key.pem" -out "$private/cert.pem" 2>/dev/null
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$private/cert.pem
for role in SCHEDULER WORKER CLIENT; do
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$private/cert.pem"
    export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$private/key.pem"
done

# A free port on this node; the dashboard on loopback only (look at it through an SSH tunnel).
dask scheduler --protocol tls --host "$(hostname)" --port 0 \
    --dashboard-address 127.0.0.1:0 --scheduler-file "$scheduler_file" &
scheduler=$!
for ((i = 0; i < 120; i++)); do
    [[ -s $scheduler_file ]] && break
    kill -0 "$scheduler" 2>/dev/null || { echo "The scheduler did not start." >&2; exit 1; }
    sleep 1
done

# Workers leave by themselves when the scheduler has been gone for a minute.
srun dask worker --protocol tls --scheduler-file "$scheduler_file" --nworkers 1 --nthreads 1 \
    --memory-limit "${SLURM_MEM_PER_CPU:-4096}MiB" --local-directory "${TMPDIR:-/tmp}" \
    --no-dashboard --death-timeout 60 &

scapedist run "$workdir" "$epoch" --output "$run" --scheduler "$scheduler_file" "$@"
