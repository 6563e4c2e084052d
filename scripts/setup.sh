#!/bin/bash
# Makes .venv ready for work in this checkout: distribution packages, a virtual environment on the system's
# Python (it must see python3-bpfcc), and this project in it, editable. A second run finds its stamp and
# returns at once, without a network.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.setup-stamp
system_python=/usr/bin/python3

fail() {
    printf 'ebpf-fw: %s\n' "$@" >&2
    exit 1
}

# What the virtual environment was made from. Its scripts hold absolute paths, so the place counts; so does
# the system's Python, which an upgrade of the distribution replaces.
fingerprint() {
    pwd
    "$system_python" -VV
    sha256sum pyproject.toml scripts/setup.sh
}

# The part of the fingerprint that a `pip install` cannot mend.
base_of() { head -n 2 <<<"$1"; }

is_healthy() { "$venv/bin/python" -c 'import pip, bcc' >/dev/null 2>&1; }

is_complete() { [[ -x $venv/bin/ebpf-fw ]] && "$venv/bin/python" -c 'import bcc, pytest' >/dev/null 2>&1; }

make_venv() {
    echo "ebpf-fw: making $venv"
    rm -rf "$venv"
    "$system_python" -m venv --system-site-packages "$venv" ||
        fail "could not make the virtual environment (is the package python3-venv installed?)"
}

install_project() {
    echo "ebpf-fw: installing Python packages into $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]' </dev/null ||
        fail "pip could not install this project's packages; its messages are above." \
            "It needs a package index (network, or pip's own settings for a mirror). Run the same command again."
    is_complete || fail "$venv is still not usable; remove it and run the same command again"
}

main() {
    local wanted found=
    scripts/packages.sh development
    wanted=$(fingerprint)
    [[ -f $stamp ]] && found=$(<"$stamp")
    [[ $found == "$wanted" ]] && is_complete && return 0

    # A stamp of another place or Python, or an environment that cannot import: nothing to save.
    if ! is_healthy || [[ -n $found && "$(base_of "$found")" != "$(base_of "$wanted")" ]]; then
        make_venv
    fi
    install_project
    printf '%s\n' "$wanted" >"$stamp"
    echo "ebpf-fw: ready: $venv/bin/ebpf-fw"
}

main "$@"
