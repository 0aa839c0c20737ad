#!/usr/bin/env bash
# The demo that the documents show, on this machine and on real parts: two nodes in
# network namespaces, embedded etcd behind TLS, BGP between them, containers wired
# by the CNI plugin, rules that act at once. Every claim is asserted; the exit code
# is the verdict. KEEP=1 leaves everything up. DOCKER=1 goes on with Docker itself.
set -euo pipefail

netctl=${NETCTL:-./netctl}
keep=${KEEP:-}
lab=/var/lib/netctl-demo-$$
cni=/opt/cni/bin/netctl   # on the lab's hosts
declare -A conf=() wish=() host=()

say()  { printf '\n\033[1m# %s\033[0m\n' "$*"; }
fail() { printf '\ndemo: FAILED: %s\n' "$*" >&2; exit 1; }

show() { [[ -z $out ]] || printf '%s\n' "$out"; }

# run: what an operator types on the first node. Prints the command and its output,
# and keeps the output for want.
out=
run() {
	printf '$ %s\n' "$*"
	if ! out=$("$@" 2>&1); then show; fail "$*"; fi
	show
}
node() { local n=$1; shift; "$netctl" lab --dir "$lab" exec "$n" -- "$@"; }
on()   { # on NODE COMMAND…: run on a node, shown without the lab around it
	printf '%s$ %s\n' "$1" "${*:2}"
	if ! out=$(node "$@" 2>&1); then show; fail "$*"; fi
	show
}
inside() { # inside CONTAINER COMMAND…
	printf '%s$ %s\n' "${1#"$prefix"}" "${*:2}"
	if ! out=$(ip netns exec "$@" 2>&1); then show; fail "$*"; fi
	show
}
want() { # each argument is a regular expression that a line of the output matches
	local re
	for re; do [[ $'\n'$out$'\n' =~ $re ]] || fail "this is missing: $re"; done
}
never() { local re; for re; do [[ ! $'\n'$out$'\n' =~ $re ]] || fail "this must not be there: $re"; done; }
same()  { [[ $out == "$1" ]] || fail "this is expected instead:"$'\n'"$1"; }
soon()  { # soon SECONDS COMMAND…: until it succeeds
	local end=$((SECONDS + $1)); shift
	until "$@" >/dev/null 2>&1; do ((SECONDS < end)) || fail "not in time: $*"; read -rt 0.05 <> <(:) || :; done
}
not() { ! "$@"; }

prefix=demo$$-
attach() { # attach NODE CONTAINER NETWORK [ADDRESS]: as a container runtime does it
	local id=$prefix$2
	conf[$id]='{"cniVersion":"1.0.0","name":"'$3'","type":"netctl"}' wish[$id]=${4:+IP=$4} host[$id]=$1
	ip netns add "$id"
	printf '%s$ CNI_COMMAND=ADD CNI_NETNS=/run/netns/%s CNI_ARGS=%s %s <<< '\''%s'\''\n' "$1" "$id" "${wish[$id]}" "$cni" "${conf[$id]}"
	plugin ADD "$id" || fail "ADD $2: $out"
	show
	[[ -z ${4:-} ]] || want "\"$4/32\""
}
plugin() {
	out=$(CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin CNI_ARGS=${wish[$2]} \
		node "${host[$2]}" "$cni" <<<"${conf[$2]}")
}
ping_through() { # ping_through CONTAINER ADDRESS: across two nodes, nothing lost
	inside "$1" ping -n -c 5 -i 0.2 -W 2 "$2"
	want ' ttl=62 ' ', 0% packet loss'
}
routed()  { [[ $(node "$1" ip route show "$2") == *via* ]]; }
reaches() { ip netns exec "$1" ping -n -c 1 -W 1 "$2"; }

cleanup() {
	local code=$? id
	trap '' INT TERM
	trap - EXIT
	if [[ -n $keep && $code -eq 0 ]]; then
		printf '\nThe lab is still up.\n  enter a node:       %s lab --dir %s exec node1 -- bash\n' "$netctl" "$lab"
		printf '  enter a container:  ip netns exec %sdataman1 bash\n' "$prefix"
		printf '  remove it all:      %s lab --dir %s down; for n in %s; do ip netns del $n; done\n' "$netctl" "$lab" "${!conf[*]}"
		exit 0
	fi
	if [[ $code -eq 1 ]]; then
		for id in "$lab"/node?/log/netctl.log; do
			[[ -e $id ]] && mapfile -t out <"$id" && printf -- '--- end of %s ---\n' "$id" && printf '%s\n' "${out[@]:(${#out[@]} > 20 ? -20 : 0)}"
		done >&2 || :
	fi
	[[ -z ${dockers:-} ]] || docker_down
	[[ ! -d $lab ]] || "$netctl" lab --dir "$lab" down >/dev/null || code=1
	for id in "${!conf[@]}"; do [[ ! -e /run/netns/$id ]] || ip netns del "$id" || code=1; done
	[[ $code -ne 0 ]] || printf '\ndemo: every claim holds\n'
	exit $code
}

for tool in ip:iproute2 ping:iputils-ping; do
	command -v "${tool%:*}" >/dev/null || fail "${tool%:*} is missing: apt-get install ${tool#*:}"
done
[[ -x $netctl ]] || fail "$netctl is missing: make build"
((EUID == 0)) || fail "must run as root"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "Two nodes: a default route on the first NIC, BGP on the second, etcd behind TLS on node1"
run "$netctl" lab --dir "$lab" up --nodes 2
want 'node1 is healthy at 192\.168\.99\.102' 'node2 is healthy at 192\.168\.99\.103'

say "Pools, networks, and the documents' rules"
on node1 netctl pool add 10.0.0.0/26 192.168.0.0/16 fd80:24e2:f998:72d6::/64
for n in dataman app-A app-B; do on node1 netctl network create $n --runtime none; done
on node1 netctl profile dataman rule add inbound --at=1 allow from tag app-A
on node1 netctl profile dataman rule add inbound --at=1 allow from tag app-B

say "Containers"
attach node1 dataman1 dataman 10.0.0.48
attach node1 appA1 app-A 192.168.32.193
attach node2 dataman2 dataman 192.168.115.193
attach node2 appB2 app-B
want '"address": *"192\.168\.115\.[0-9]+/32"'
[[ $out =~ \"address\":\ *\"([0-9.]+)/32\" ]]; appB=${BASH_REMATCH[1]}
((${appB##*.} >= 192)) || fail "$appB is not in node2's block 192.168.115.192/26"

say "netctl status"
on node1 netctl status
want 'netctl agent is running\.' 'IPv4 BGP status' 'IP: 192\.168\.99\.102    AS Number: 64511 \(inherited\)' \
	$'\n''\| 192\.168\.99\.103 \| node-to-node mesh \|   up  \| [0-9:]{8} \| Established \|'$'\n' 'No IPv6 address configured\.'

say "netctl pool show"
on node1 netctl pool show
same "+----------------+---------+
|   IPv4 CIDR    | Options |
+----------------+---------+
|  10.0.0.0/26   |         |
| 192.168.0.0/16 |         |
+----------------+---------+
+--------------------------+---------+
|        IPv6 CIDR         | Options |
+--------------------------+---------+
| fd80:24e2:f998:72d6::/64 |         |
+--------------------------+---------+"

say "netctl profile show"
on node1 netctl profile show --detailed
want 'dataman +\| +node1 ' 'app-A +\| +node1 ' 'dataman +\| +node2 ' 'app-B +\| +node2 '
on node1 netctl profile dataman rule show
same "Inbound rules:
   1 allow from tag app-B
   2 allow from tag app-A
   3 allow from tag dataman
Outbound rules:
   1 allow"

say "The nodes' routes: a blackhole per own block, the other's blocks through the other"
soon 10 routed node1 192.168.115.192/26
soon 10 routed node2 10.0.0.0/26
soon 10 routed node2 192.168.32.192/26
on node1 ip route
want $'\n''default via 192\.168\.1\.1 dev eth0' $'\n''blackhole 10\.0\.0\.0/26 proto netctl' $'\n''blackhole 192\.168\.32\.192/26 proto netctl' \
	$'\n''10\.0\.0\.48 dev nc[0-9a-f]{11} proto netctl scope link' $'\n''192\.168\.115\.192/26 via 192\.168\.99\.103 dev eth1 proto netctl-bgp'
on node2 ip route
want $'\n''blackhole 192\.168\.115\.192/26 proto netctl' $'\n''192\.168\.115\.193 dev nc[0-9a-f]{11} proto netctl scope link' \
	$'\n''10\.0\.0\.0/26 via 192\.168\.99\.102 dev eth1 proto netctl-bgp' $'\n''192\.168\.32\.192/26 via 192\.168\.99\.102 dev eth1 proto netctl-bgp'
never 'blackhole 10\.' '169\.254\.1\.1 via'

say "What a container sees"
ping_through "${prefix}dataman1" 192.168.115.193
ping_through "${prefix}dataman2" 10.0.0.48
inside "${prefix}dataman1" ip addr show eth0
want 'inet 10\.0\.0\.48/32 ' 'mtu 1500'
inside "${prefix}dataman1" ip route
want $'\n''default via 169\.254\.1\.1 dev eth0 *'$'\n''169\.254\.1\.1 dev eth0 scope link *'$'\n''$'
inside "${prefix}dataman1" ip neigh
want $'\n''169\.254\.1\.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee '

say "Who may talk to whom"
ping_through "${prefix}appA1" 192.168.115.193
reaches "${prefix}appA1" 10.0.0.48 >/dev/null || fail "app-A does not reach dataman on its own node"
echo "app-A reaches dataman on its own node too"
! reaches "${prefix}appA1" "$appB" >/dev/null || fail "app-A reaches app-B without a rule"
echo "app-A does not reach app-B ($appB)"
on node1 netctl profile app-B rule add inbound allow from tag app-A
soon 3 reaches "${prefix}appA1" "$appB"
ping_through "${prefix}appA1" "$appB"
on node1 netctl profile app-B rule remove inbound allow from tag app-A
soon 3 not reaches "${prefix}appA1" "$appB"
! ip netns exec "${prefix}appA1" ping -n -c 5 -i 0.2 -W 1 "$appB" >/dev/null || fail "app-A still reaches app-B"
echo "app-A does not reach app-B any more"

[[ -z ${DOCKER:-} ]] || source "${BASH_SOURCE[0]%/*}/demo-docker.sh"

if [[ -z $keep ]]; then
	say "The end of the containers"
	for id in "${!conf[@]}"; do plugin DEL "$id" || fail "DEL ${id#"$prefix"}: $out"; done
	on node1 netctl ipam check
	on node1 ip route
	never ' dev nc'
fi
