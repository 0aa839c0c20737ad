# The documents' Docker commands on the demo's two nodes: sourced by demo.sh where DOCKER=1 says so.

dockers=(node1 node2)
docker_up() { # docker_up NODE: Docker and its driver, in folders of the lab
	local image=$lab/bb.tar root=$lab/image
	node "$1" sh -c 'mkdir -p /run/docker && mount -t tmpfs none /run/docker'
	node "$1" sh -c 'setsid netctl docker --config /etc/netctl.yaml >/run/docker/driver.log 2>&1 </dev/null &'
	node "$1" sh -c 'setsid dockerd --data-root /run/docker/lib --exec-root /run/docker/run --pidfile /run/docker/pid -H unix:///run/docker.sock >/run/docker/log 2>&1 </dev/null &'
	soon 60 node "$1" docker version
	if [[ ! -e $image ]]; then
		mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp}
		cp "$(command -v busybox)" "$root/bin/busybox"
		for applet in sh sleep ping ip nc httpd; do ln -sf busybox "$root/bin/$applet"; done
		echo hello >"$root/etc/hello"
		tar -C "$root" -cf "$image" .
	fi
	node "$1" docker import -c 'ENV PATH=/bin' "$image" busybox >/dev/null
}
docker_down() {
	local n
	for n in "${dockers[@]}"; do
		node "$n" sh -c 'ids=$(docker ps -aq) && [ -z "$ids" ] || docker rm -f $ids; [ ! -e /run/docker/pid ] || kill $(cat /run/docker/pid); while [ -e /run/docker/pid ]; do sleep 0.1; done' >/dev/null 2>&1 || :
	done
}
address() { node "$1" docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$2"; }

say "Docker on both nodes, its networks by the documents' own commands"
for n in "${dockers[@]}"; do docker_up "$n"; done
for n in "${dockers[@]}"; do
	for net in app-A dataman app-B; do on "$n" docker network create --driver calico --ipam-driver calico $net; done
done
on node1 docker network ls
want ' dataman +calico +local' ' app-A +calico +local' ' app-B +calico +local'

say "Containers of Docker in the networks of the others"
on node1 docker run -d --net dataman --name db1 busybox sleep 1h
on node2 docker run -d --net dataman --name db2 -p 8080:80 busybox httpd -f -h /etc
on node1 docker run -d --net app-A --name web1 busybox sleep 1h
on node2 docker run -d --net app-B --name web2 busybox sleep 1h
db2=$(address node2 db2) web2=$(address node2 web2)
on node1 docker exec db1 ip route
same "default via 169.254.1.1 dev eth0 
169.254.1.1 dev eth0 scope link "
soon 10 node node1 docker exec db1 ping -c1 -W1 "$db2"
on node1 docker exec db1 ping -c 3 -W 2 "$db2"
want 'ttl=62' ' 0% packet loss'
on node1 docker exec web1 ping -c 1 -W 2 "$db2"                  # app-A may call dataman
! node node1 docker exec web1 ping -c 1 -W 2 "$web2" >/dev/null || fail "app-A reaches app-B"

say "A published port, which the rules of its network decide about"
hello() { node node1 sh -c "printf 'GET /hello HTTP/1.0\r\n\r\n' | busybox nc -w 2 192.168.99.103 8080" 2>/dev/null | grep -x hello; }
! hello || fail "a stranger gets through"
on node1 netctl profile dataman rule add inbound allow tcp to ports 80
soon 10 hello
echo "http://192.168.99.103:8080/hello says: $(hello)"
on node1 netctl endpoint show --detailed
want ' docker '

say "One command, and every node has the network, in Docker and for CNI"
on node1 netctl network create shop --pool 192.168.0.0/16
everywhere() { [[ $(node node1 netctl network show shop | grep -c ' present ') -eq 4 ]]; }
soon 30 everywhere
on node1 netctl network show shop
want 'node1 +\| +docker +\| present' 'node2 +\| +docker +\| present' 'node2 +\| +cni +\| present'
on node2 docker network ls --filter name=shop
want ' shop +netctl +local'
docker_down
