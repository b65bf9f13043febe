# Sourced by the scripts that run once on every host: where the hosts meet, and the interpreter.
# shellcheck shell=bash

# fail EXIT_CODE TEXT: a last line that says which host it comes from.
fail() {
  echo "${0##*/} on $(uname -n): $2" >&2
  exit "$1"
}

# need NAME...: these variables must be set and not empty.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail 2 "set $name (see the top of $0)"
  done
}

# whole NAME LEAST [MOST]: these variables are whole numbers in that range, if they are set.
whole() {
  local value=${!1:-} most=${3:-999999999}
  [[ -z $value ]] && return
  if [[ ! $value =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((value < $2 || value > most)); then
    fail 2 "$1 must be a whole number from $2 to $most, got \"$value\" (see the top of $0)"
  fi
}

# split_address HOST:PORT: sets $host (an IPv6 address without its brackets) and $port.
split_address() {
  host=${1%:*} port=${1##*:}
  host=${host#\[} host=${host%\]}
  if [[ $1 != *:* || -z $host || ! $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then
    fail 2 "expected HOST:PORT, got \"$1\" (PORT from 1 to 65535)"
  fi
}

# wait_until_listening HOST:PORT SECONDS: until the first host has opened its port. Whatever is wrong (a name that does
# not resolve, an address that is not there, a firewall, a first host that has not started) ends here, by the clock.
wait_until_listening() {
  local host port said until=$((SECONDS + $2))
  split_address "$1"
  # shellcheck disable=SC2016 # for the inner shell
  until said=$(timeout 5 bash -c 'exec 3<> "/dev/tcp/$0/$1"' "$host" "$port" 2>&1); do
    if ((SECONDS >= until)); then
      fail 69 "nothing answered at $1 within $2 s (last: $(tail -n 1 <<< "${said:-no answer in 5 s}")). Is the first \
host running, is this its name or address, is the port open between hosts?"
    fi
    sleep 1
  done
}

# The interpreter that has glomo_dist: $PYTHON, or the checkout's own.
PYTHON=${PYTHON:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python}
command -v "$PYTHON" > /dev/null || fail 2 "no interpreter at $PYTHON: run \`make setup\` there, or set PYTHON"
