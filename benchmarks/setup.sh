#!/bin/bash
# Installs what only the benchmarks need: the peers (distribution packages) and matplotlib. `make bench` calls it
# after `make setup`; with nothing missing it needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

# "package  the command that it gives"
peers=(
    "xdp-tools xdp-filter"
    "nftables  nft"
    "iptables  iptables"
    "ipset     ipset"
    "ethtool   ethtool"
)

fail() {
    printf 'ebpf-fw: %s\n' "$@" >&2
    exit 1
}

main() {
    local need package command missing=()
    for need in "${peers[@]}"; do
        read -r package command <<<"$need"
        command -v "$command" >/dev/null || missing+=("$package")
    done
    if ((${#missing[@]})); then
        [[ $EUID -eq 0 ]] || fail "these packages are missing: ${missing[*]}" "Run it as root: sudo make bench"
        command -v apt-get >/dev/null || fail "install these, by Debian's names: ${missing[*]}"
        echo "ebpf-fw: installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq </dev/null || echo "ebpf-fw: apt-get update failed; going on" >&2
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
            fail "apt-get could not install: ${missing[*]}"
    fi
    .venv/bin/python -c 'import matplotlib' 2>/dev/null ||
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' </dev/null ||
        fail "pip could not install the extra \"bench\""
    mkdir -p build
}

main "$@"
