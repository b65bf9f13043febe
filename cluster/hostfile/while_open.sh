#!/usr/bin/env bash
# while_open.sh COMMAND...: run it while standard input is open. When that ends (the launcher or the connection is gone) it
# gets SIGTERM; when this script gets SIGTERM, SIGHUP or SIGUSR1, SIGTERM too. Exits with its exit code.
set -uo pipefail
"$@" < /dev/null &
task=$!
(
  while read -r _; do :; done
  kill -TERM "$task"
) 2> /dev/null <&0 &
watch=$!
trap 'kill -TERM "$task" 2> /dev/null' TERM HUP USR1
while :; do # a signal ends `wait`, not what it waits for
  wait "$task"
  code=$?
  kill -0 "$task" 2> /dev/null || break
done
kill "$watch" 2> /dev/null
exit "$code"
