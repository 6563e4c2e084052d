# Every command here works from a clean clone. Root is needed for demo, test, property, swap, install and uninstall,
# and the first time for setup (distribution packages).

SHELL := /bin/bash
.DEFAULT_GOAL := help

python := .venv/bin/python
pytest := $(python) -m pytest
# A few workers: the tests wait more than they compute. The tests of one netns file stay on one worker.
workers := -n auto --maxprocesses 4 --dist loadgroup
c_sources = $(wildcard bpf/*.c bpf/*.h)

# Given through to pytest: make test PYTEST_ARGS='-k fragment -x'
PYTEST_ARGS ?=
PROPERTY_PAIRS ?= 200000
SWAPS ?= 5000
MINUTES ?= 60
FRAMES ?= 10000000
SECONDS ?= 600
SEED ?= 1
DESTDIR ?=
PURGE ?=
DEB_VERSION ?=
export DESTDIR PURGE DEB_VERSION

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup:  ## Install what is missing and make .venv (a second run is instant and needs no network)
	@scripts/setup.sh

.PHONY: demo
demo: setup  ## Show the firewall at work between two network namespaces (root; changes nothing on the host)
	@$(python) scripts/demo.py

.PHONY: test
test: setup  ## Run every test but the long ones in virtual machines (root; installs QEMU)
	@tests/vm/packages.sh small
	$(pytest) $(workers) $(PYTEST_ARGS)

.PHONY: test-unit
test-unit: setup  ## Run the tests that need no root: unit and API
	$(pytest) $(wildcard tests/unit tests/api) $(PYTEST_ARGS)

.PHONY: test-datapath
test-datapath: setup  ## Run the packet tests: bytes in, verdict out, by the kernel (root)
	$(pytest) $(workers) tests/datapath $(PYTEST_ARGS)

.PHONY: test-netns
test-netns: setup  ## Run the tests with the real service and real traffic (root)
	$(pytest) $(workers) tests/netns $(PYTEST_ARGS)

.PHONY: test-vm
test-vm: setup  ## Boot Debian's kernels under QEMU and test there (root; installs QEMU; 2 GB of cache; without KVM two hours)
	@tests/vm/packages.sh
	$(pytest) tests/vm $(PYTEST_ARGS)

.PHONY: test-vm-short
test-vm-short: setup  ## The part of it that takes some ten minutes: the package installed, upgraded, rebooted, removed (root)
	@tests/vm/packages.sh
	SYSTEM_SHORT=1 $(pytest) tests/vm/test_system.py $(PYTEST_ARGS)

.PHONY: property
property: setup  ## Run the long property test, PROPERTY_PAIRS=200000 rule sets and packets (root)
	PROPERTY_PAIRS=$(PROPERTY_PAIRS) $(pytest) tests/datapath -k property $(PYTEST_ARGS)

.PHONY: no-gap
no-gap: setup  ## Flood the service through 100 restarts and 100 kills, kill it at each step of changes (root)
	NO_GAP_ROUNDS=100 CRASH_CHANGES=3000 $(pytest) -n0 tests/netns/test_no_gap.py tests/datapath/test_crash.py $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: setup  ## Fuzz the packet parser with FRAMES=10000000 frames, and the import formats (root; SEED=1)
	FUZZ_FRAMES=$(FRAMES) FUZZ_SEED=$(SEED) $(pytest) -s tests/datapath/test_fuzz.py $(PYTEST_ARGS)
	IMPORT_FUZZ_SECONDS=60 FUZZ_SEED=$(SEED) $(pytest) -n 2 tests/api/test_fuzz_imports.py $(PYTEST_ARGS)

.PHONY: schemathesis
schemathesis: setup  ## Send requests made from the OpenAPI document to the real service for SECONDS=600 (root; SEED=1)
	ATTACK_SECONDS=$(SECONDS) FUZZ_SEED=$(SEED) $(pytest) -s tests/netns/test_attack.py $(PYTEST_ARGS)

.PHONY: soak
soak: setup  ## Change, read, flood and kill the service for MINUTES=60, in a namespace; then compare everything (root)
	SOAK_MINUTES=$(MINUTES) $(pytest) -s tests/netns/test_soak.py $(PYTEST_ARGS)

.PHONY: swap
swap: setup  ## Change and swap rules SWAPS=5000 times while packets are judged: none may meet a mixture (root)
	SWAPS=$(SWAPS) $(pytest) tests/datapath/test_changes.py tests/datapath/test_swaps.py -k mixture $(PYTEST_ARGS)

.PHONY: bench
bench: setup  ## Measure the firewall and its peers; QUICK=1 takes under three minutes (root)
	@benchmarks/setup.sh
	$(python) -m benchmarks $(if $(QUICK),--quick) --json build/bench.json --markdown build/bench.md --plot build/bench.png $(BENCH_ARGS)

.PHONY: lint
lint: setup  ## Run the linters, the type checker and the tests of the repository itself
	$(pytest) tests/repository $(PYTEST_ARGS)

.PHONY: format
format: setup  ## Format Python and C
	$(python) -m ruff check --fix-only --quiet .
	$(python) -m ruff format .
	$(if $(c_sources),.venv/bin/clang-format -i $(c_sources))

.PHONY: install
install:  ## Install to /opt/ebpf-fw with a systemd unit (root; DESTDIR=DIR installs below DIR)
	@scripts/install.sh

.PHONY: uninstall
uninstall:  ## Remove the installation; PURGE=1 removes configuration and state as well (root)
	@scripts/uninstall.sh

.PHONY: deb
deb:  ## Build the Debian package for this host's release into build/ (DEB_VERSION=VERSION)
	@scripts/deb.sh

.PHONY: clean
clean:  ## Remove .venv and all caches
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
