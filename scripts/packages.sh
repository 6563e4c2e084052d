#!/bin/bash
# Installs the distribution packages that are missing, and only those.
#
# usage: packages.sh runtime|development
#
# A need is tested by what it gives (a command, a module, a file), not by the package's name, so a tool that
# came from elsewhere counts. With nothing missing, neither root nor a network is needed.
set -euo pipefail

# What every use needs, and what the tests need beside it. "package  the test that it is there".
runtime=(
    "python3-bpfcc   /usr/bin/python3 -c 'import bcc'"
    "python3-venv    /usr/bin/python3 -c 'import ensurepip, venv'"
    "linux-libc-dev  test -e /usr/include/linux/bpf.h"
    "iproute2        command -v ip && command -v tc"
)
development=(
    "iputils-ping    command -v ping"
    "make            command -v make"
    "shellcheck      command -v shellcheck"
    "bpftool         command -v bpftool"
    "tcpdump         command -v tcpdump"
    "nftables        command -v nft"
    "ethtool         command -v ethtool"
    "fail2ban        command -v fail2ban-server"
)

fail() {
    printf 'ebpf-fw: %s\n' "$@" >&2
    exit 1
}

# Prints the packages of the needs given as arguments that are not met.
list_missing() {
    local need package check
    for need in "$@"; do
        read -r package check <<<"$need"
        (eval "$check") >/dev/null 2>&1 || printf '%s\n' "$package"
    done
}

# Tests start fail2ban themselves, with a configuration of their own: the package's service is not to begin banning on
# this host because somebody ran them.
install_packages() {
    local unit=/etc/systemd/system/fail2ban.service status=0 masked=
    if [[ " $* " == *" fail2ban "* && ! -e $unit ]]; then
        install -d "$(dirname "$unit")"
        ln -s /dev/null "$unit"
        masked=1
    fi
    apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null || status=$?
    if [[ -n $masked ]]; then
        rm -f "$unit" "$(dirname "$unit")/multi-user.target.wants/fail2ban.service"
        [[ ! -d /run/systemd/system ]] || systemctl daemon-reload
    fi
    return "$status"
}

main() {
    # A user's PATH may lack these, and ip, tc, nft, ethtool and bpftool live there.
    PATH=$PATH:/usr/sbin:/sbin
    local needs missing
    case ${1:-} in
        runtime) needs=("${runtime[@]}") ;;
        development) needs=("${runtime[@]}" "${development[@]}") ;;
        *) fail "usage: packages.sh runtime|development" ;;
    esac
    [[ -x /usr/bin/python3 ]] || needs=("python3 test -x /usr/bin/python3" "${needs[@]}")

    mapfile -t missing < <(list_missing "${needs[@]}")
    ((${#missing[@]})) || return 0

    command -v apt-get >/dev/null ||
        fail "these are missing: ${missing[*]}" \
            "Those are Debian's names; there is no apt-get here. Install what gives the same, then try again."
    [[ $EUID -eq 0 ]] ||
        fail "these packages are missing: ${missing[*]}" \
            "Run it as root, or install them: sudo apt-get install ${missing[*]}"

    echo "ebpf-fw: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null ||
        echo "ebpf-fw: apt-get update failed; going on with the package lists that are here" >&2
    install_packages "${missing[@]}" ||
        fail "apt-get could not install: ${missing[*]}" "Its messages are above."

    mapfile -t missing < <(list_missing "${needs[@]}")
    ((${#missing[@]} == 0)) || fail "installed, but still not usable: ${missing[*]}"
}

main "$@"
