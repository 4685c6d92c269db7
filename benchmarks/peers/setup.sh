#!/bin/sh
# Install the peers under $PEERS_HOME (default ~/.cache/operations-center-peers), outside of the repository. As root:
# s6 goes into the system (s6-svscan execs /usr/bin/s6-supervise by its absolute path), the other packages are only
# unpacked. Needs apt-get, npm and node; PostgreSQL 15 for the queues that want it.
set -eu
root=$(cd -- "$(dirname -- "$0")/../.." && pwd)
home=${PEERS_HOME:-$HOME/.cache/operations-center-peers}
mkdir -p "$home/debs" "$home/root" "$home/node"

cd -- "$home/debs"
apt-get update -q
apt-get install -y -q --no-install-recommends s6
apt-get download runit redis-server redis-tools libjemalloc2 liblzf1
for package in *.deb; do
    dpkg -x "$package" "$home/root"
done

# Our program, too: its rows are measured by the same scripts.
"$root/.venv/bin/python" -m venv "$home/venv"
"$home/venv/bin/pip" install -q --editable "$root" supervisor circus honcho psutil huey procrastinate rq celery redis \
    dramatiq "psycopg[binary,pool]" persist-queue litequeue

cd -- "$home/node"
npm init -y >/dev/null
npm install --silent pm2 bullmq pg-boss pg ioredis
