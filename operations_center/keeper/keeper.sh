# Runs one executor, records its exit, and ends when nothing of the run is left.
#
#   sh -c TEXT keeper WORKING_DIRECTORY STDIN CGROUP_PROCS ARGV...
#
# Working directory: the run directory. stdin: the run's lock. stdout: the pipe that the timer reads.
# Names start with "_" because a plain name would change a variable of the executor's environment.

# ":" and not "": an ignored signal would stay ignored in the executor.
trap : HUP INT QUIT TERM USR1 USR2 ALRM PIPE

_take_start_ticks() {
    shift 19
    _start_ticks=$1
}

# Children, also adopted ones: the launcher made this process a subreaper.
_has_children() {
    if [ -e "/proc/$$/task/$$/children" ]; then
        _children=
        read -r _children <"/proc/$$/task/$$/children"
        [ -n "$_children" ]
        return
    fi
    for _file in /proc/[0-9]*/stat; do
        read -r _stat <"$_file" || continue
        # shellcheck disable=SC2086
        set -- ${_stat##*) }
        [ "$2" != "$$" ] || return 0
    done
    return 1
}

# In place, into blocks that exist: a full disk cannot swallow the record.
# A file system that writes copies may want room all the same: then the record waits for it.
_record() {
    until printf '%-63s\n' "exit $_code end" 1<>exit || [ ! -e exit ]; do
        command -p sleep 1 8>&- 9>&-
    done
    command -p sync exit . 8>&- 9>&-
}

# The gate comes before the first fork: whoever revokes the run creates it and finds no process.
read -r _stat <"/proc/$$/stat"
# shellcheck disable=SC2086
_take_start_ticks ${_stat##*) }
set -C
echo "$$ $_start_ticks end" >gate || exit 0
set +C

# Nobody but this process may hold the lock and the pipe: they tell others that it lives.
exec 9<&0 8>&1 </dev/null >/dev/null
echo "$$" >&8

# Without its files or a process of its own nothing has run: try again later. A shell that cannot fork ends.
_code=75
trap _record EXIT
{
    (
        exec 8>&- 9>&-
        echo 0 2>/dev/null >"$3"
        cd -- "$1" || exit 126
        shift 3
        exec "$@"
    )
    _code=$?
} <"$2" >>stdout 2>>stderr
trap - EXIT
_record

while _has_children; do
    command -p sleep 0.1 8>&- 9>&-
done

# Its own exit says only that it did its work: the executor's is in the record.
exit 0
