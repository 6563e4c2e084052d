#!/bin/bash
# Installs what building and booting virtual machines needs on this host; `packages.sh small`: what the smallest one
# needs, which is a part of `make test`. Kernels are never installed here: their packages are unpacked below the cache
# directory.
set -euo pipefail

# "package  the test that it is there".
needs=(
    "qemu-system-x86  command -v qemu-system-x86_64"
    "cpio             command -v cpio"
    "debian-archive-keyring  test -f /usr/share/keyrings/debian-archive-keyring.gpg"
)
needs_of_systems=(
    "mmdebstrap       command -v mmdebstrap"
    "e2fsprogs        command -v mke2fs"
    "kmod             command -v depmod"
    "zstd             command -v zstd"
    "xz-utils         command -v xz"
    "gcc-12           command -v gcc-12"
    "make             command -v make"
)

list_missing() {
    local need package check
    for need in "${needs[@]}"; do
        read -r package check <<<"$need"
        (eval "$check") >/dev/null 2>&1 || printf '%s\n' "$package"
    done
}

main() {
    [[ ${1:-} == small ]] || needs+=("${needs_of_systems[@]}")
    PATH=$PATH:/usr/sbin:/sbin
    local missing
    mapfile -t missing < <(list_missing)
    ((${#missing[@]})) || return 0
    [[ $EUID -eq 0 ]] || {
        echo "ebpf-fw: the virtual machine tests need root and: ${missing[*]}" >&2
        exit 1
    }
    echo "ebpf-fw: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null ||
        echo "ebpf-fw: apt-get update failed; going on with the package lists that are here" >&2
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

main "$@"
