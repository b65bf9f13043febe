#!/usr/bin/env bash
# One host's part of a pretraining over several hosts: torchrun, which meets the other hosts and starts the ranks here.
# SLURM, Kubernetes or ssh start it once on every host with the same arguments, those of `glomo pretrain`:
#
#   NODES=2 NODE_INDEX=0 MEET=node-a:29500 cluster/pretrain_host.sh SHARDS --out RUN --recipe NAME [--flags]
#
# NODES           how many hosts, or MIN:MAX of them: MIN start without the others after 30 s, who join by a restart
# NODE_INDEX      0 on the host that MEET names, 1, 2, ... on the others
# MEET            HOST:PORT, a free port of the first host that all others reach
# RANKS_PER_NODE  processes here: `gpu` is one per GPU (default); on CPU a number
# RUN_ID          any word that two jobs on the same hosts do not share (default: glomo)
# RESTARTS        how often all ranks are started again after one died (default: 0)
# JOIN_SECONDS    how long to wait for hosts that come later (default: 600)
# LOST_SECONDS    how long the first host may be silent before this one gives up (default: 30)
# LOCAL_ADDRESS   name or address under which the others reach this host (default: its own host name)
# SAVE_SECONDS    how long the ranks may take to save after a signal (default: 60)
# PYTHON          interpreter (default: the checkout's .venv/bin/python)
#
# SIGTERM, SIGUSR1, Ctrl-C and SIGHUP let the ranks save and exit. Exit codes: 0 the run is finished; 75 it was asked to
# stop, start it again; 69 the first host does not answer; 2 something to correct, by its message; others in torchrun.py.
set -euo pipefail
# shellcheck source=cluster/meet.sh
. "$(dirname "${BASH_SOURCE[0]}")/meet.sh"
need NODES NODE_INDEX MEET
split_address "$MEET"
if [[ ! $NODES =~ ^([1-9][0-9]{0,8}:)?[1-9][0-9]{0,8}$ ]] || ((${NODES%:*} > ${NODES#*:})); then
  fail 2 "NODES must be a whole number from 1 on, or MIN:MAX, got \"$NODES\""
fi
whole NODE_INDEX 0 $((${NODES#*:} - 1))
whole RESTARTS 0
for name in JOIN_SECONDS LOST_SECONDS SAVE_SECONDS; do whole "$name" 1; done
export RANKS_PER_NODE=${RANKS_PER_NODE:-gpu}
if [[ ! $RANKS_PER_NODE =~ ^(gpu|[1-9][0-9]{0,8})$ ]]; then
  fail 2 "RANKS_PER_NODE must be gpu or a whole number from 1 on, got \"$RANKS_PER_NODE\""
fi
if [[ $NODE_INDEX == 0 ]]; then
  is_host=true
else
  is_host=false
  wait_until_listening "$MEET" "${JOIN_SECONDS:-600}"
fi
export MEET NODE_INDEX LOST_SECONDS=${LOST_SECONDS:-30} # and RANKS_PER_NODE: for torchrun.py
settings="is_host=$is_host,join_timeout=${JOIN_SECONDS:-600},read_timeout=$LOST_SECONDS"
if [[ $NODES == *:* || ${RESTARTS:-0} != 0 ]]; then
  # A host that joins others at work waits in vain for the address of the store that torchrun (2.13) keeps for the ranks:
  # it is told once, at the first start. A store of the ranks' own is told of at every start.
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-60}
exec "$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/torchrun.py" \
  --nnodes "$NODES" --nproc-per-node "$RANKS_PER_NODE" --max-restarts "${RESTARTS:-0}" \
  --rdzv-id "${RUN_ID:-glomo}" --rdzv-backend c10d --rdzv-endpoint "$MEET" --rdzv-conf "$settings" \
  ${LOCAL_ADDRESS:+--local-addr "$LOCAL_ADDRESS"} --signals_to_handle SIGTERM,SIGUSR1 --log-dir /dev/null \
  -m glomo_dist.cli pretrain "$@"
