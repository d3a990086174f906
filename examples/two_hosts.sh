#!/bin/sh
# Two machines that train one run together; here both are this one, and each starts one process.
#
#     sh examples/two_hosts.sh question-type-lora data.train_rows=320 train.epochs=1 --out runs/two-hosts
#
# On real machines, start the command of `host` on each of them, with 0 as the first one's rank and 1 as the second
# one's, with the first one's address in place of 127.0.0.1, with its number of GPUs after --nproc-per-node, and without
# GLOO_SOCKET_IFNAME. --out must be on a disk that both can write. Every machine needs the same version of pefttools, the
# same recipe and the same files; their folders may differ. If a process dies, add --resume to the same commands.
set -u

host() {
    rank=$1
    shift
    GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} torchrun --nnodes 2 --node-rank "$rank" \
        --nproc-per-node 1 --master-addr 127.0.0.1 --master-port "${PORT:-29400}" -m pefttools train "$@"
}

host 1 "$@" &
second=$!
host 0 "$@"
code=$?
wait $second || code=$?
exit $code
