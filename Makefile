# netctl. `make demo` shows the product, `make test` proves it; `make help` lists the rest.

VERSION := $(shell v=$$(git describe --tags --always --dirty 2>/dev/null || echo unknown); \
	case $$v in (v[0-9]*) echo $${v\#v} ;; (*) echo 0.1.0-g$$v ;; esac)
LDFLAGS := -s -w -X netctl/commands.version=$(VERSION)
PREFIX  := /usr/local
DESTDIR :=

export CGO_ENABLED := 0
export GOFLAGS     := -trimpath -buildvcs=false
export GOTOOLCHAIN := local
export NETCTL_BINARY := $(CURDIR)/netctl

# How many inputs each fuzz target tries in `make test`, and how long a package may
# take. Not a time: with one, `go test -fuzz` fails now and then as it runs out.
FUZZTIME := 10000x
TIMEOUT  := 20m

.PHONY: help promtool build demo test test-all test-trixie fuzz race lint docs site completions bench budget install dist clean packages demo-packages guest kernels debian chromium

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# The plain program goes into the second one, which starts in half the time, and so does
# the plugin, which starts in a quarter of that: see commands/datastore, commands/plugin.
build: ## the static binary ./netctl
	go build -ldflags '$(LDFLAGS)' -o netctl .
	gzip -9 -n -c netctl > commands/datastore/netctl.gz
	go build -ldflags '$(subst netctl/commands.version,main.version,$(LDFLAGS))' -o commands/plugin/plugin ./commands/plugin
	gzip -9 -n -c commands/plugin/plugin > commands/install/plugin.gz
	go build -tags bundled -ldflags '$(LDFLAGS)' -o netctl .

demo: demo-packages build ## two nodes on this machine, wired, routed and filtered (KEEP=1 leaves them up, DOCKER=1 installs Docker and shows it too)
	@KEEP=$(KEEP) DOCKER=$(DOCKER) NETCTL=$(CURDIR)/netctl bash docs/demo.sh

test: packages build ## everything CI runs
	go vet ./...
	@$(MAKE) --no-print-directory fuzz
	go test -count=1 -p 3 -timeout $(TIMEOUT) ./commands/lab ./...  # the longest first

test-all: race lint guest kernels debian promtool chromium ## test with ten times the fuzzing, the race detector, the linter, other kernels and a browser
	@NETCTL_FLOOD=600000 NETCTL_ABSENCE=10m NETCTL_LEAKS=500 NETCTL_GUEST=1 NETCTL_SWARM=1 NETCTL_FLAVOURS=all $(MAKE) --no-print-directory test FUZZTIME=100000x TIMEOUT=60m

test-trixie: packages build ## the runtimes of Debian 13 in a tree of it: Docker 26, Podman 5 with netavark, containerd
	@bash .ci/packages debootstrap
	@bash .ci/trixie
	NETCTL_TRIXIE=/var/cache/netctl-test/trixie/root go test -count=1 -v -run 'TestTrixie$$' -timeout $(TIMEOUT) ./commands/lab

fuzz: ## every fuzz target with FUZZTIME inputs
	@bash .ci/fuzz $(FUZZTIME)

race: packages build ## the packages with concurrent work under the race detector
	CGO_ENABLED=1 GOFLAGS=-buildvcs=false go test -race -count=1 -timeout $(TIMEOUT) ./acl ./acl/nft ./datastore/... ./netdev ./netdev/kernel ./routing/... ./commands/agent ./commands/control ./commands/cni ./commands/docker ./commands/node ./commands/retry ./commands/runtimes ./commands/speaker ./commands/workload

lint: ## golangci-lint of .ci/tools
	go -C .ci/tools build -o $(CURDIR)/.ci/tools/bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	.ci/tools/bin/golangci-lint run ./...

docs: build ## docs/cli and docs/man from the command tree
	rm -rf docs/cli docs/man
	NETCTL_WRITE_DOCS=1 go test -count=1 -run 'TestGenerated|TestPagesInOrder' ./commands

site: ## the pages as HTML, in dist/site
	NETCTL_WRITE_SITE=$(CURDIR)/dist/site go test -count=1 -run TestSite ./commands

completions: docs ## completions of the three shells (written together with docs)

bench: packages build guest ## ratios against references measured in the same run
	go test -count=1 -tags bench -run 'TestBench$$|TestBenchThousand|TestBenchScale|TestBenchReflector|TestBenchTunnels|TestBenchAPI' -v -timeout 30m ./commands
	go test -count=1 -tags bench -run "TestBenchRoutes|TestBenchCrowd" -v -timeout 30m ./commands/speaker
	go test -count=1 -tags bench -run TestBenchCluster -v -timeout 30m ./commands/agent
	go test -count=1 -tags bench -run TestBenchDocker -v -timeout 30m ./commands/docker
	go test -count=1 -tags bench -run TestBenchPolicy -v -timeout 30m ./commands
	NETCTL_GUEST=1 go test -count=1 -tags bench -run 'TestBenchIPIP|TestBenchFlowtable' -v -timeout 30m ./commands/lab

budget: packages build ## size, start-up and memory against their limits
	go test -count=1 -tags bench -run TestBudget -v -timeout 10m ./commands

install: ## netctl install, into DESTDIR and PREFIX
	@test -x netctl || { echo "make install: run make build first"; exit 1; }
	@$(if $(DESTDIR),mkdir -p $(DESTDIR))
	./netctl install $(if $(DESTDIR),--root $(DESTDIR)) --prefix $(PREFIX)

dist: build ## dist/*.deb and dist/*.rpm
	go -C .ci/nfpm build -o bin/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm
	@bash .ci/dist $(VERSION)

debian: # a tree of Debian's, as images are built from
	@bash .ci/packages debootstrap
	@bash .ci/debian

guest: # QEMU, and a kernel with what this machine's may lack: see netdev/qemulab; a server of ssh; libvirt, LXD
	@bash .ci/packages qemu-system-x86_64 depmod sshd libvirtd virsh lxd lxc
	@bash .ci/kernel

kernels: # those of Debian 11 and 13, beside this release's
	@bash .ci/kernel bullseye
	@bash .ci/kernel trixie

promtool: # looks at docs/alerts.yaml and the dashboard
	@bash .ci/packages promtool

chromium: # looks at the page of netctl ui
	@bash .ci/packages chromium

packages:
	@bash .ci/packages

demo-packages:
	@bash .ci/packages ip ping $(if $(DOCKER),dockerd busybox)

clean: ## what the targets above made
	rm -rf netctl commands/datastore/netctl.gz .ci/tools/bin .ci/nfpm/bin dist
