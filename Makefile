# Building portd takes Go alone. `make help` lists what else there is.

# The race detector needs a C compiler and its headers; without them the tests run without it.
RACE ?= $(shell go build -race runtime/cgo 2>/dev/null && echo -race)
# Git does not talk about another user's tree, and go build then fails unless told not to ask.
VCS = $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)
TOOL = go tool -modfile=tools/go.mod

# For one run: make test TESTFLAGS='-run Overlap -v', make bench BENCH=Reserve, make test-long FUZZTIME=10m
TESTFLAGS =
BENCH = .
FUZZTIME = 1m

# Under the race detector a process stays for a second after its end, in case a report is still being written. Tests start hundreds.
export GORACE ?= atexit_sleep_ms=50

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

build: ## build ./bin/portd and ./bin/portctl
	@echo "building… (the first time takes a minute)"
	CGO_ENABLED=0 go build -trimpath $(VCS) -o bin/ ./cmd/portd ./cmd/portctl

test: ## run all tests, as root more of them
	go test $(RACE) -timeout 5m $(TESTFLAGS) ./...

test-long: ## run the tests at length, and every fuzz target for FUZZTIME
	PORTD_LONG=1 go test $(RACE) -timeout 30m $(TESTFLAGS) ./...
	./scripts/fuzz $(FUZZTIME)

bench: ## run the benchmarks
	go test -run '^$$' -bench '$(BENCH)' -benchmem ./...

bench-handoff: ## compare the hand-off with servers that need none (needs cc; HAPROXY=1: with HAProxy too, installed if missing)
	go run ./bench/handoff $(if $(HAPROXY),-haproxy)

demo: build ## show the first minute with portd
	@CGO_ENABLED=0 go build -trimpath $(VCS) -o .scratch/bin/ ./examples/demo ./examples/http-worker
	@PATH="$$PWD/bin:$$PWD/.scratch/bin:$$PATH" .scratch/bin/demo

generate: ## make the code that follows from the .proto files
	go generate ./...

fmt: ## format the code
	$(TOOL) gofumpt -w */

lint: ## check format, vet and staticcheck
	@unformatted=$$($(TOOL) gofumpt -l */) && test -z "$$unformatted" || { echo "make fmt: $$unformatted"; false; }
	go vet ./...
	$(TOOL) staticcheck ./...

lint-api: ## check the .proto files, and that the API breaks no caller (needs npm)
	mkdir -p .scratch
	go run ./proto/generate -descriptors .scratch/api.binpb
	./scripts/buf lint .scratch/api.binpb --path portd
	./scripts/buf breaking .scratch/api.binpb --against api/baseline.binpb --path portd

api-baseline: ## make the API as it is now the released one, which later ones may not break
	go run ./proto/generate -baseline api/baseline.binpb

ci: ## do what CI does (as root)
	bash .ci/run

clean: ## remove what was built
	rm -rf bin .scratch/api.binpb

.PHONY: help build test test-long bench bench-handoff demo generate fmt lint lint-api api-baseline ci clean
