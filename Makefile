# porthole: `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

GO ?= go
CLANG ?= clang-19
CLANG_FORMAT ?= clang-format-19
PREFIX ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

BPF_SOURCES := $(wildcard bpf/*.h bpf/*.c)
BPF_CFLAGS := -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter \
	-I/usr/include/$(shell uname -m)-linux-gnu -ffile-prefix-map=$(CURDIR)=.
LDFLAGS := -s -w -X main.version=$(VERSION)

## help: list the targets
.PHONY: help
help:
	@sed -n 's/^## \([a-z-]*\): /  \1\t/p' $(MAKEFILE_LIST) | expand -t 20

## run: build, show the sockets there are, then follow events (asks for root)
.PHONY: run
run: build
	@if [ "$$(id -u)" = 0 ]; then exec ./porthole tail --sockets; else exec sudo ./porthole tail --sockets; fi

## build: build ./porthole, one static binary
.PHONY: build
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o porthole ./cmd/porthole

## generate: rebuild the BPF objects and their Go types
.PHONY: generate
generate:
	cd tracer && BPF2GO_CC=$(CLANG) BPF2GO_CFLAGS='$(BPF_CFLAGS)' $(GO) generate ./...
