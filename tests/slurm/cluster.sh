#!/usr/bin/env bash
# A SLURM of one node on loopback, with all its files in one folder, for tests (Debian: slurm-wlm, munge; as root).
#   cluster.sh start FOLDER    prints nothing; afterwards SLURM_CONF=FOLDER/slurm.conf names the cluster
#   cluster.sh stop FOLDER     ends its own three daemons, by their process numbers
set -euo pipefail

usage="usage: cluster.sh start|stop FOLDER"
action=${1:?$usage}
folder=$(realpath -m "${2:?$usage}")
export SLURM_CONF="$folder/slurm.conf"

# Two at once, so that they differ.
free_ports() {
    python3 -c 'import socket
both = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in both))'
}

write_settings() {
    local host ports
    host=$(hostname -s)
    read -ra ports < <(free_ports)
    cat >"$SLURM_CONF" <<EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=300
MessageTimeout=90
BatchStartTimeout=120
SlurmdTimeout=0
MinJobAge=600
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

start() {
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    write_settings
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    slurmctld -c
    slurmd -c
    for _ in $(seq 240); do
        if [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; then return; fi
        sleep 0.5
    done
    stop
    echo "the cluster did not come up: $(tail -n 3 "$folder/slurmctld.log" "$folder/slurmd.log" 2>&1)" >&2
    exit 1
}

# TERM, then KILL after twenty seconds: a daemon of a test must not outlive it.
end() {
    local number
    number=$(cat "$1" 2>/dev/null) || return 0
    kill "$number" 2>/dev/null || return 0
    for _ in $(seq 200); do
        kill -0 "$number" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$number" 2>/dev/null || true
}

# Whether within a minute no job is left on the node.
empty() {
    for _ in $(seq 120); do
        if [[ -z $(squeue --noheader --states=R,CG 2>/dev/null) ]]; then return; fi
        sleep 0.5
    done
    return 1
}

# Jobs first: slurmd does not take them along.
stop() {
    scancel --user=root --state=PENDING 2>/dev/null || true
    scancel --full --signal=KILL --user=root 2>/dev/null || true
    empty || echo "jobs are left: $(squeue --noheader 2>&1)" >&2
    end "$folder/slurmd.pid"
    end "$folder/slurmctld.pid"
    end "$folder/munged.pid"
}

case $action in
start) start ;;
stop) stop ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
