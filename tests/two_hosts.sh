#!/usr/bin/env bash
# Two network namespaces that a pair of virtual devices joins, as if they were two machines, and a command of MPI's on both:
#
#     tests/two_hosts.sh [--delay 5ms] [--loss 0.5%] PROGRAM ARGS...
#
# One process runs in each; they see each other by TCP alone. Needs root, iproute2 and Open MPI. Exit code 77: it cannot be tried here.
set -euo pipefail

netem=()
while [ $# -gt 0 ]; do
    case $1 in
    --delay) netem+=(delay "$2") && shift 2 ;;
    --loss) netem+=(loss "$2") && shift 2 ;;
    *) break ;;
    esac
done

id=$$
a=tune-a-$id b=tune-b-$id va=ta$id vb=tb$id
folder=$(mktemp -d)
clean() {
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
    rm -rf "$folder"
}
trap clean EXIT

if ! { ip netns add "$a" && ip netns add "$b" && ip link add "$va" type veth peer name "$vb"; } 2>"$folder/why"; then
    echo "network namespaces cannot be made here: $(cat "$folder/why")" >&2
    exit 77
fi
ip link set "$va" netns "$a"
ip link set "$vb" netns "$b"
for side in "$a $va 10.77.0.1" "$b $vb 10.77.0.2"; do
    read -r space device address <<<"$side"
    ip -n "$space" addr add "$address/24" dev "$device"
    ip -n "$space" link set lo up
    ip -n "$space" link set "$device" up
    if [ ${#netem[@]} -gt 0 ] && ! ip netns exec "$space" tc qdisc add dev "$device" root netem "${netem[@]}" 2>"$folder/why"; then
        echo "the network cannot be slowed down here: $(cat "$folder/why")" >&2
        exit 77
    fi
done

# What MPI starts on the other machine, in place of ssh: HOST COMMAND...
cat >"$folder/agent" <<AGENT
#!/bin/sh
shift
exec ip netns exec "$b" unshare --uts sh -c "hostname tune-b; \$*"
AGENT
chmod +x "$folder/agent"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ip netns exec "$a" unshare --uts sh -c 'hostname tune-a; exec "$@"' sh \
    mpirun -n 2 --host 10.77.0.1:1,10.77.0.2:1 --map-by node --bind-to none \
    --mca plm_rsh_agent "$folder/agent" --mca plm_rsh_no_tree_spawn 1 \
    --mca oob_tcp_if_include 10.77.0.0/24 --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 --mca pml ob1 -x RAYON_NUM_THREADS="${RAYON_NUM_THREADS:-1}" \
    "$@"
