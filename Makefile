# porthole: `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

GO ?= go
CLANG ?= clang-19
CLANG_FORMAT ?= clang-format-19
PREFIX ?= /usr/local
# Root as it takes to attach BPF programs; what builds stays the user's.
SUDO := $(if $(filter 0,$(shell id -u)),,$(if $(shell command -v sudo),sudo env PATH=$(PATH)))
VERSION ?= $(shell deploy/packaging/version)

BPF_SOURCES := $(wildcard bpf/*.h bpf/*.c)
BPF_CFLAGS := -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter \
	-I/usr/include/$(shell uname -m)-linux-gnu -ffile-prefix-map=$(CURDIR)=.
LDFLAGS = -s -w -X main.version=$(VERSION)
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# What is needed besides Go: command or file = Debian package.
TEST_NEEDS := gcc=gcc python3=python3 tmux=tmux ss=iproute2 lsof=lsof qemu-system-x86_64=qemu-system-x86 qemu-system-aarch64=qemu-system-arm xz=xz-utils man=man-db mandoc=mandoc \
	prometheus=prometheus promtool=prometheus nft=nftables iptables-legacy=iptables \
	dockerd=docker.io ctr=containerd runc=runc podman=podman /usr/lib/podman/netavark=netavark \
	/usr/libexec/podman/catatonit=catatonit newuidmap=uidmap slirp4netns=slirp4netns /bin/busybox=busybox-static /usr/sbin/sshd=openssh-server ssh=openssh-client
# Their packages start servers and let them start at boot; the tests start their own.
stop = for server in $(1); do if [ -d /run/systemd/system ]; then systemctl disable --now $$server || :; \
	elif [ -x /etc/init.d/$$server ]; then /etc/init.d/$$server stop; fi; done
GENERATE_NEEDS := $(CLANG)=clang-19 $(CLANG_FORMAT)=clang-format-19 llvm-strip-19=llvm-19 \
	/usr/include/bpf/bpf_helpers.h=libbpf-dev /usr/include/linux/bpf.h=linux-libc-dev

## help: list the targets
.PHONY: help
help:
	@sed -n 's/^## \([a-z-]*\): /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

## run: build, show the sockets there are, start the agent, follow events (asks for root)
.PHONY: run
run: build
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo ./porthole ls && exec $$sudo ./porthole agent --tail

# The day of the man pages: that of the commit.
DATE = $(or $(shell git log -1 --format=%cs 2>/dev/null),$(shell date +%F))
# A Go that builds what is run here, whatever it is asked to build for.
HOST_GO = env -u GOOS -u GOARCH CGO_ENABLED=0 $(GO)

## build: build ./porthole, one static binary, and in build/ its man pages and completions
.PHONY: build
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o porthole ./cmd/porthole
	@mkdir -p build/man build/completion
	@$(HOST_GO) run -tags man -ldflags '$(LDFLAGS)' ./cmd/porthole build/man $(DATE)
	@for shell in bash zsh fish; do $(HOST_GO) run -ldflags '$(LDFLAGS)' ./cmd/porthole completion $$shell >build/completion/$$shell || exit; done

## generate: rebuild the BPF objects and their Go types
.PHONY: generate
generate:
	cd tracer && BPF2GO_CC=$(CLANG) BPF2GO_CFLAGS='$(BPF_CFLAGS)' $(GO) generate ./...

## deps: install what tests and generate need, or tell what is missing
.PHONY: deps
deps:
	@missing() { for need; do command -v "$${need%=*}" >/dev/null || [ -e "$${need%=*}" ] || echo "$${need#*=}"; done; }; \
	required=$$(missing $(TEST_NEEDS)); all=$$(missing $(TEST_NEEDS) $(GENERATE_NEEDS) $(MORE_NEEDS)); \
	if [ -z "$$all" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$all && \
		case "$$all" in *prometheus*) $(call stop,prometheus);; esac; \
		case "$$all" in *docker.io*) $(call stop,docker.socket docker);; esac; \
		case "$$all" in *containerd*) $(call stop,containerd);; esac; \
		case "$$all" in *openssh-server*) $(call stop,ssh);; esac; \
		case "$$all" in *etcd*) $(call stop,etcd);; esac; \
		case "$$all" in *podman*) $(call stop,podman.socket podman podman-auto-update.timer);; esac; \
	else \
		echo "missing, by the names of Debian's packages:" $$all >&2; [ -z "$$required" ]; \
	fi

## test: every test, here (as root) and in VMs; KERNEL=6.1: there alone
.PHONY: test
ifdef KERNEL
test: test-kernels
else
test: test-here test-otlp test-kernels test-systemd test-reboot
endif

## test-here: the tests on this machine's kernel alone
.PHONY: test-here
test-here: deps build
	@set -o pipefail; rc=0; \
	$(GO) test -p 1 -count=1 -v -timeout 30m -exec '$(SUDO)' ./... 2>&1 | tee test-here.log | sed -u '/^=== /d' || rc=$$?; \
	echo; grep -E '^ *--- (FAIL|SKIP)' test-here.log; \
	awk '/^=== (RUN|CONT)/ { test = $$3 } /^(panic|fatal error): / { print $$0 ", in or after " test }' test-here.log; \
	sed -n '/running tests:$$/,/^$$/p' test-here.log; \
	grep -E '^(ok|FAIL)\b.' test-here.log; exit $$rc

# The packages all of whose tests anybody can run, anywhere.
UNIT := ./internal/cache ./internal/doctor ./internal/query ./test/vm
# Of identity, those that cannot.
IDENTITY_AS_ROOT := ^Test(CgroupsAreBounded|Container(IsBelieved|InWritableDirectory|Name|Renamed)|NAT|NetNSOfChild|Names([GOR]|Follow|NumberUsedAgain)|Resolve(Again|Gone|Made)|Want)

## unit: the tests that need no root, no packages and no network: seconds
.PHONY: unit
unit:
	@$(GO) test $(UNIT)
	@$(GO) test -skip '$(IDENTITY_AS_ROOT)' ./internal/identity
	@$(GO) test -skip '^TestEnd(NumberUsedAgain|NotPermitted)$$' ./internal/top
	@$(GO) test -run '^Test(Help|WrongUsage|Version|Hints|StopWritesEnd|JSONDocs|TopNoTerminal)$$' ./cmd/porthole

## race: goroutines that share what they must not, in the packages that can show it (needs a C compiler)
.PHONY: race
race:
	@CGO_ENABLED=1 $(GO) test -race $(UNIT) ./internal/agent ./internal/api ./internal/identity ./internal/metrics ./internal/source ./internal/render
	@CGO_ENABLED=1 $(GO) test -race -exec '$(SUDO)' -skip '^TestKill$$' ./internal/store
	@CGO_ENABLED=1 $(GO) test -race -exec '$(SUDO)' ./internal/top
	@CGO_ENABLED=1 $(GO) test -race -exec '$(SUDO)' -run '^Test(Matcher|Rows|Table|Completer|Fanout|Events|KernelStartsAtOnce)' ./tracer

## test-kernels: the kernel tests (RUN=: those) in VMs of other kernels; needs no root
.PHONY: test-kernels
test-kernels: deps
	@doc=$$(mktemp); trap 'rm -f "$$doc"' EXIT; set -e; \
	$(GO) run ./test/vm -kernel '$(KERNEL)' $(if $(RUN),-run '$(RUN)') -doc "$$doc"; \
	if [ -z '$(KERNEL)$(RUN)' ] && ! diff -u --label docs/kernels.md --label 'these runs' docs/kernels.md "$$doc"; then \
		echo "docs/kernels.md is not what the kernels show: run make docs" >&2; exit 1; fi

## test-systemd: the service and its unit, in a VM whose process 1 is systemd; needs no root
.PHONY: test-systemd
test-systemd: deps
	@$(GO) run ./test/vm -systemd -kernel amd64/6.12

## test-reboot: the history over a power cut, in a VM that boots twice with one disk; needs no root
.PHONY: test-reboot
test-reboot: MORE_NEEDS := /usr/sbin/mkfs.ext4=e2fsprogs
test-reboot: deps
	@$(GO) run ./test/vm -reboot -kernel amd64/6.12

# How long soak goes on, and fuzz each of its targets.
DURATION ?= 1h
SOAK ?= $(DURATION)
FUZZTIME ?= 10m

## soak: an hour (DURATION=) each of the model, of churn, of overload and of a disk that fills up: nothing may grow (asks for root)
.PHONY: soak
soak: deps
	PORTHOLE_SOAK=$(SOAK) $(GO) test -p 1 -count=1 -v -timeout 0 -exec '$(if $(SUDO),$(SUDO) PORTHOLE_SOAK=$(SOAK))' \
		-run '^(TestGrowth|TestAgentOverload|TestSoakHistory|TestSoakDiskFills)$$' ./tracer ./cmd/porthole ./internal/store

## fuzz: ten minutes (FUZZTIME=) of each fuzz target, one after the other
.PHONY: fuzz
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg"; \
		done; \
	done

## test-kubelet: pods of a real kubelet, and the manifests on a real API server, which are built first: some 30 minutes (asks for root)
.PHONY: test-kubelet
test-kubelet: MORE_NEEDS := etcd=etcd-server /usr/lib/cni/portmap=containernetworking-plugins ip=iproute2
test-kubelet: deps
	cd test/kubelet && CGO_ENABLED=0 nice $(GO) build -trimpath -o bin/ tool
	cd test/kubelet && CGO_ENABLED=0 GOBIN="$$PWD/bin" nice $(GO) install -trimpath helm.sh/helm/v3/cmd/helm@v3.19.4
	$(GO) test -tags kubelet -count=1 -v -exec '$(SUDO)' -run '^TestKube' ./test/containers

## test-otlp: events of an agent through a Collector into VictoriaLogs, which are built first: some 3 minutes (asks for root)
.PHONY: test-otlp
test-otlp: deps build
	cd test/otlp && CGO_ENABLED=0 nice $(GO) build -trimpath -o bin/ ./collector tool
	cd test/otlp && CGO_ENABLED=0 $(GO) test -count=1 -v -timeout 20m -exec '$(SUDO)' ./...

## test-fleet: three machines of different kernels in VMs, with the package, to one Collector, VictoriaLogs and Prometheus: some 10 minutes; needs no root
.PHONY: test-fleet
test-fleet: deps
	cd test/otlp && CGO_ENABLED=0 nice $(GO) build -trimpath -o bin/ ./collector tool
	cd test/otlp && CGO_ENABLED=0 $(GO) test -tags fleet -count=1 -v -timeout 60m -run '^TestFleet$$' .

## bench-fleet: a thousand exporters on this machine to one Collector, which is killed meanwhile: what it takes; some 5 minutes
.PHONY: bench-fleet
bench-fleet:
	cd test/otlp && CGO_ENABLED=0 nice $(GO) build -trimpath -o bin/ ./collector tool
	CGO_ENABLED=0 $(GO) test -c -tags load -o test/otlp/bin/exporters ./internal/export
	cd test/otlp && CGO_ENABLED=0 $(GO) test -tags load -count=1 -v -timeout 20m -run '^TestLoad$$' .

## check-collector: have a Collector that has their exporters read deploy/collector/contrib: some 10 minutes to build
.PHONY: check-collector
check-collector:
	cd test/otlp && CGO_ENABLED=0 nice $(GO) build -trimpath -tags all -o bin/collector-all ./collector
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; for f in deploy/collector/contrib/*.yaml; do \
		COLLECTOR_STORAGE="$$tmp" test/otlp/bin/collector-all validate --config "$$f" || exit 1; echo "$$f: valid"; done

## docs: write docs/metrics.md, and docs/kernels.md from what VMs show
.PHONY: docs
docs: deps
	$(GO) test ./internal/metrics -run Docs -update
	$(GO) run ./test/vm -doc docs/kernels.md

## bench-kernels: what both tiers cost, in VMs of two kernels, in one beside bcc
.PHONY: bench-kernels
bench-kernels: deps
	@$(GO) run ./test/vm -kernel amd64/6.1,amd64/6.12 -bench -timeout 30m

## bench: what porthole costs, beside nothing and beside other tools (asks for root)
.PHONY: bench
bench: MORE_NEEDS := bpftrace=bpftrace netstat=net-tools
bench: deps build
	@$(GO) test -c -o tracer.test ./tracer
	@$(GO) test -c -o store.test ./internal/store
	@$(GO) run -exec '$(SUDO)' ./test/bench -porthole ./porthole -decode ./tracer.test -store ./store.test

## bench-history: of bench what the history on disk takes: to write, on disk, to ask, in memory (asks for root)
.PHONY: bench-history
bench-history: build
	@$(GO) test -c -o store.test ./internal/store
	@$(GO) run -exec '$(SUDO)' ./test/bench -porthole ./porthole -store ./store.test -history

## lint: look for mistakes in the Go code
.PHONY: lint
lint:
	$(GO) vet ./...
	cd deploy/packaging && $(GO) vet ./...
	$(GO) vet -tags systemd ./test/systemd
	$(GO) vet -tags reboot ./test/reboot
	$(GO) vet -tags fleet ./test/fleet
	$(GO) vet -tags load ./internal/export
	cd test/otlp && $(GO) vet -tags fleet,load .
	$(GO) vet -tags kubelet ./test/containers
	$(GO) vet -tags man ./cmd/porthole
	$(GO) run $(GOLANGCI_LINT) run ./...

## fmt: format Go and C
.PHONY: fmt
fmt:
	gofmt -w .
	$(CLANG_FORMAT) -i $(BPF_SOURCES)

## check-fmt: show what fmt would change, and fail if anything
.PHONY: check-fmt
check-fmt:
	@changes=$$(gofmt -d .; for f in $(BPF_SOURCES); do $(CLANG_FORMAT) "$$f" | diff -u --label "$$f" --label formatted "$$f" -; done); \
	if [ -n "$$changes" ]; then echo "$$changes"; echo "not formatted: run make fmt" >&2; exit 1; fi

## check-generated: prove that the BPF objects are those of the source
.PHONY: check-generated
check-generated:
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; cp -r Makefile go.mod go.sum bpf tracer "$$tmp"; \
	$(MAKE) --no-print-directory -C "$$tmp" generate && \
	if ! diff -rq tracer "$$tmp/tracer"; then echo "not of this source: run make generate" >&2; exit 1; fi

# The binary to install.
BINARY ?= porthole

## install: install what make build has made, below DESTDIR and PREFIX: binary, unit, man pages, completions, alerts, dashboard
.PHONY: install
install:
	@[ -x "$(BINARY)" ] && [ -d build/man ] || { echo "nothing is built yet: run make build first, which needs no root" >&2; exit 1; }
	install -Dm755 "$(BINARY)" "$(DESTDIR)$(PREFIX)/bin/porthole"
	sed 's|/usr/local/|$(PREFIX)/|' deploy/porthole.service | \
		install -Dm644 /dev/stdin "$(DESTDIR)$(PREFIX)/lib/systemd/system/porthole.service"
	install -Dm644 deploy/packaging/porthole.sysusers "$(DESTDIR)$(PREFIX)/lib/sysusers.d/porthole.conf"
	[ -e "$(DESTDIR)/etc/default/porthole" ] || install -Dm644 deploy/packaging/porthole.default "$(DESTDIR)/etc/default/porthole"
	install -Dm644 -t "$(DESTDIR)$(PREFIX)/share/man/man1" build/man/*.1
	install -Dm644 build/completion/bash "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/porthole"
	install -Dm644 build/completion/zsh "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_porthole"
	install -Dm644 build/completion/fish "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/porthole.fish"
	install -Dm644 -t "$(DESTDIR)$(PREFIX)/share/porthole" deploy/prometheus/porthole.rules.yml deploy/prometheus/porthole.fleet.rules.yml deploy/grafana/porthole.json deploy/grafana/porthole-fleet.json

# What packages builds: names of Go's architectures, formats, and where it puts them.
ARCHES ?= amd64 arm64
FORMATS ?= deb rpm apk tar.gz
DIST ?= dist

## packages: build .deb, .rpm, .apk, .tar.gz (FORMATS=) for both architectures (ARCHES=), SBOMs and SHA256SUMS, in dist/
.PHONY: packages
packages: build
	ARCHES='$(ARCHES)' FORMATS='$(FORMATS)' MAKE='$(MAKE)' deploy/packaging/packages '$(VERSION)' '$(DIST)'

## image: build the container image of each architecture (ARCHES=) for docker load and podman load, in dist/
.PHONY: image
image:
	@$(MAKE) --no-print-directory packages FORMATS=image

## check-packages: prove that packages and images built twice are the same, and that lintian has no complaint
.PHONY: check-packages
check-packages: MORE_NEEDS := lintian=lintian
check-packages: deps
	@ARCHES='$(ARCHES)' FORMATS='$(FORMATS) image' deploy/packaging/check '$(VERSION)'

## release: make packages, images, SBOMs and SHA256SUMS of VERSION=X.Y.Z in dist/, of a clean tree, and prove that they can be made again
.PHONY: release
release:
	@deploy/packaging/release '$(if $(filter command line,$(origin VERSION)),$(VERSION))'

## clean: remove what build made
.PHONY: clean
clean:
	rm -rf porthole build dist deploy/packaging/bin tracer.test store.test test-here.log
