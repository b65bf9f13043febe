# Sourced by the batch scripts, on a job's first node: where its nodes meet, and how it ends or comes back.
# shellcheck shell=bash
# shellcheck source=cluster/meet.sh
. cluster/meet.sh
whole MAX_REQUEUES 0

# Since Slurm 22.05 srun does not take over what sbatch was told by --cpus-per-task: its tasks would get one core.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

# meet: sets $first (name of the first node) and $port (PORT, or one by the job's number, so that two jobs that share a
# node do not meet each other; from 20000 to 29999, where neither Linux nor Ray's workers take ports by themselves).
meet() {
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  first=${first%%$'\n'*} # not `| head`: of hundreds of names scontrol would die of SIGPIPE
  port=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
  echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_JOB_NODELIST meet at $first:$port"
}

# obey: from here on SIGUSR1 and SIGTERM are handed on to what in_steps runs; before that there is nothing to save, and
# the job goes back into the queue at once.
obey() {
  signalled='' step=''
  trap 'asked USR1' USR1
  trap 'asked TERM' TERM
}

asked() {
  signalled=SIG$1
  [[ -n $step ]] || leave 75
  kill "-$1" "$step" 2> /dev/null || true # it may have ended by itself
}

# in_steps SRUN...: run it, and exit as it did (see leave).
in_steps() {
  local code=0
  "$@" &
  step=$!
  while :; do # a signal ends `wait`, not what it waits for
    wait "$step" && code=0 || code=$?
    kill -0 "$step" 2> /dev/null || break
  done
  leave "$code"
}

# leave EXIT_CODE: end with it; except that a job that was asked to stop (by a signal to this script, or to its tasks: exit
# code 75) and is not finished goes back into the queue.
leave() {
  local code=$1 requeues=${SLURM_RESTART_COUNT:-0}
  trap '' USR1 TERM
  ((code == 0)) && exit 0
  if [[ -n $signalled || $code == 75 ]] && ((requeues < ${MAX_REQUEUES:-1000})); then
    echo "stopped by ${signalled:-a signal to its tasks}: back into the queue (this was start $((requeues + 1)))"
    scontrol requeue "$SLURM_JOB_ID" # ends this script too
    exit 0
  fi
  echo "job $SLURM_JOB_ID failed with exit code $code; its messages are above" >&2
  exit "$code"
}
